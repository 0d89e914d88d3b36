// The browser of examples. Texts become text nodes, never markup. The filter is
// part of the address, so that a view can be linked: #q=tree&show=wrong.
(() => {
  const root = document.getElementById('browser');
  const all = JSON.parse(document.getElementById('browser-data').textContent);
  if (!root || !all.length) return;

  const PAGE_SIZE = 10;
  const MAX_OPEN_STUDENTS = 5;
  // Name -> label, and whether to show an example (e) by the selected student's
  // answer (s), the teacher's (t), and those of the two methods compared (a, b).
  const FILTERS = new Map([
    ['all', ['All examples', () => true]],
    ['right', ['Student right', (s) => s && s.right]],
    ['wrong', ['Student wrong', (s) => s && !s.right]],
    ['teacher-right', ['Teacher right', (s, t) => t && t.right]],
    ['teacher-wrong', ['Teacher wrong', (s, t) => t && !t.right]],
    ['above', ['Student right, teacher wrong', (s, t) => s && t && s.right && !t.right]],
    ['below', ['Student wrong, teacher right', (s, t) => s && t && !s.right && t.right]],
    ['argues-for', ['Rationale argues for the label', (s, t, e) => e.argues === 'for']],
    ['argues-against', ['Rationale argues for another label', (s, t, e) => e.argues === 'against']],
    ['split', ['Students disagree', (s, t, e) => new Set(e.students.filter(Boolean).map((x) => x.right)).size > 1]],
    ['only-first', ['Compared: only the first right', (s, t, e, a, b) => a && b && a.right && !b.right]],
    ['only-second', ['Compared: only the second right', (s, t, e, a, b) => a && b && !a.right && b.right]],
  ]);
  // Characters that are invisible or reorder the text around them.
  const HIDDEN = new RegExp('([\\u0000-\\u0008\\u000b-\\u001f\\u007f-\\u009f\\u00ad\\u061c\\u200b-\\u200f' +
    '\\u2028-\\u202e\\u2060-\\u206f\\ufeff]|[\\ud800-\\udbff](?![\\udc00-\\udfff])|(?<![\\ud800-\\udbff])[\\udc00-\\udfff])');

  const state = { benchmark: 0, student: defaultStudent(0), first: 0, second: 1, show: 'all', q: '', page: 1 };

  // The student to begin with: step-by-step if there is one.
  function defaultStudent(benchmark) {
    return Math.max(0, all[benchmark].students.findIndex((s) => s.method.endsWith('_dsbs')));
  }

  function readAddress() {
    const given = new URLSearchParams(location.hash.slice(1));
    if (!['benchmark', 'student', 'first', 'second', 'show', 'q', 'page'].some((key) => given.has(key))) return false;
    const name = given.get('benchmark');
    const found = all.findIndex((b) => b.name === name);
    state.benchmark = found < 0 ? 0 : found;
    const student = parseInt(given.get('student'), 10);
    state.student = all[state.benchmark].students[student] ? student : defaultStudent(state.benchmark);
    ['first', 'second'].forEach((key, i) => {
      const number = parseInt(given.get(key), 10);
      state[key] = all[state.benchmark].methods[number] ? number : i;
    });
    state.show = FILTERS.has(given.get('show')) ? given.get('show') : 'all';
    state.q = given.get('q') || '';
    state.page = Math.max(1, parseInt(given.get('page'), 10) || 1);
    return true;
  }

  function writeAddress() {
    const shown = new URLSearchParams({
      benchmark: all[state.benchmark].name, student: state.student, first: state.first, second: state.second, show: state.show,
      q: state.q, page: state.page,
    });
    history.replaceState(null, '', '#' + shown);
  }

  function element(tag, properties, ...children) {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  }

  function text(value, className) {
    const made = element('span', { className: 'text ' + className, dir: 'auto' });
    const query = state.q.toLowerCase();
    for (const piece of value.split(HIDDEN)) {
      if (HIDDEN.test(piece)) {
        const code = 'U+' + piece.codePointAt(0).toString(16).toUpperCase().padStart(4, '0');
        made.append(element('span', { className: 'hidden-character', title: 'invisible character' }, code));
      } else {
        highlight(made, piece, query);
      }
    }
    if (!value.trim()) made.append(element('span', { className: 'hidden-character' }, value ? 'blank' : 'empty'));
    return made;
  }

  function highlight(into, piece, query) {
    const lower = piece.toLowerCase();
    if (!query || lower.length !== piece.length) {
      into.append(piece);
      return;
    }
    let from = 0;
    for (let at = lower.indexOf(query); at >= 0; at = lower.indexOf(query, from)) {
      into.append(piece.slice(from, at), element('mark', {}, piece.slice(at, at + query.length)));
      from = at + query.length;
    }
    into.append(piece.slice(from));
  }

  function verdict(right) {
    return element('span', { className: 'verdict ' + (right ? 'right' : 'wrong') }, right ? '✓ right' : '✗ wrong');
  }

  function answerCell(answer) {
    const made = element('dd', {}, text(answer.label, 'answer'), verdict(answer.right));
    if (answer.rationale !== null && answer.rationale !== undefined) made.append(text(answer.rationale, 'rationale'));
    return made;
  }

  function name(student) {
    return `${student.title} (${student.details})`;
  }

  function card(example, benchmark) {
    const list = element('dl', {},
      element('dt', {}, 'Input'), element('dd', {}, text(example.input, 'input')),
      element('dt', {}, 'Human label'), element('dd', {}, text(example.gold, 'answer')));
    if (example.teacher) list.append(element('dt', {}, 'Teacher (LLM)'), answerCell(example.teacher));
    const others = element('dl', {});
    example.students.forEach((answer, i) => {
      if (!answer) return;
      const student = benchmark.students[i];
      const term = element('dt', {}, student.title, element('small', {}, student.details));
      const value = answerCell(answer);
      if (i === state.student) [term, value].forEach((e) => e.classList.add('chosen'));
      (i === state.student ? list : others).append(term, value);
    });
    const head = element('header', {}, element('span', {}, `example ${example.index}`));
    if (example.id) head.append(text(example.id, 'answer'));
    const made = element('article', { className: 'example' }, head, list);
    const count = others.children.length / 2;
    if (count) {
      const fold = element('details', { open: count <= MAX_OPEN_STUDENTS },
        element('summary', {}, `${count} other student${count > 1 ? 's' : ''}`), others);
      made.append(fold);
    }
    made.dataset.index = example.index;
    return made;
  }

  function matches(example) {
    const methods = all[state.benchmark].methods;
    const pair = [state.first, state.second].map((i) => methods[i] && comparing.answerOf(example, methods[i]));
    if (!FILTERS.get(state.show)[1](example.students[state.student], example.teacher, example, ...pair)) return false;
    if (!state.q) return true;
    const answers = [example.teacher, ...example.students].filter(Boolean);
    const texts = [example.input, example.gold, example.id, ...answers.flatMap((a) => [a.label, a.rationale || ''])];
    const query = state.q.toLowerCase();
    return texts.some((t) => t.toLowerCase().includes(query));
  }

  function options(select, entries, value) {
    select.replaceChildren(...entries.map(([key, label]) => element('option', { value: key }, label)));
    select.value = String(value);
  }

  const get = (id) => document.getElementById(id);

  function render() {
    const benchmark = all[state.benchmark];
    options(get('benchmark'), all.map((b, i) => [i, b.name]), state.benchmark);
    options(get('student'), benchmark.students.map((s, i) => [i, name(s)]), state.student);
    options(get('show'), [...FILTERS].map(([key, [label]]) => [key, label]), state.show);
    if (get('q').value !== state.q) get('q').value = state.q;
    const found = benchmark.examples.filter(matches);
    const pages = Math.max(1, Math.ceil(found.length / PAGE_SIZE));
    state.page = Math.min(state.page, pages);
    const from = (state.page - 1) * PAGE_SIZE;
    const right = found.filter((e) => e.students[state.student] && e.students[state.student].right).length;
    get('count').textContent =
      `${found.length.toLocaleString('en')} of ${benchmark.examples.length.toLocaleString('en')} examples; ` +
      `the selected student is right on ${right.toLocaleString('en')} of them.`;
    get('examples').replaceChildren(...found.slice(from, from + PAGE_SIZE).map((e) => card(e, benchmark)));
    get('page').textContent = `Page ${state.page} of ${pages}`;
    get('previous').disabled = state.page === 1;
    get('next').disabled = state.page === pages;
    get('scope').textContent = scope(benchmark);
    compare(benchmark);
  }

  // The two methods compared, and the table of all pairs.
  function compare(benchmark) {
    const methods = benchmark.methods.map((m, i) => [i, comparing.nameOf(m, i)]);
    get('compare').hidden = methods.length < 2;
    if (methods.length < 2) return;
    options(get('first'), methods, state.first);
    options(get('second'), methods, state.second);
    const pair = comparing.pairOf(benchmark, state.first, state.second);
    const shown = pair ? comparing.panel(benchmark, pair, element, showExamples)
      : [element('p', {}, 'Choose two different methods.')];
    get('pair').replaceChildren(...shown);
    get('matrix').replaceChildren(...comparing.matrix(benchmark, state, element, (i, j) => {
      state.first = i;
      change('second', j);
    }));
  }

  function showExamples(filter) {
    change('show', filter);
    root.scrollIntoView({ behavior: 'instant' });
  }

  // Which examples and students the page has.
  function scope(benchmark) {
    const parts = [`Split: ${benchmark.split}.`];
    if (benchmark.examples.length < benchmark.num_examples) {
      parts.push(`This page has the first ${benchmark.examples.length.toLocaleString('en')} of ` +
        `${benchmark.num_examples.toLocaleString('en')} examples.`);
    }
    if (benchmark.num_hidden_students) parts.push(`${benchmark.num_hidden_students} further students are not shown.`);
    if (benchmark.note) parts.push(benchmark.note);
    return parts.join(' ');
  }

  function change(key, value) {
    state[key] = value;
    if (key !== 'page') state.page = 1;
    if (key === 'benchmark') Object.assign(state, { student: defaultStudent(value), first: 0, second: 1 });
    writeAddress();
    render();
  }

  get('benchmark').addEventListener('change', (e) => change('benchmark', Number(e.target.value)));
  get('student').addEventListener('change', (e) => change('student', Number(e.target.value)));
  get('first').addEventListener('change', (e) => change('first', Number(e.target.value)));
  get('second').addEventListener('change', (e) => change('second', Number(e.target.value)));
  get('show').addEventListener('change', (e) => change('show', e.target.value));
  get('q').addEventListener('input', (e) => change('q', e.target.value));
  get('previous').addEventListener('click', () => change('page', state.page - 1));
  get('next').addEventListener('click', () => change('page', state.page + 1));
  window.addEventListener('hashchange', () => { if (readAddress()) render(); });
  root.hidden = false;
  const linked = readAddress();
  render();
  if (linked) root.scrollIntoView({ behavior: 'instant' });
})();
