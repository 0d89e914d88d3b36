'use strict';
// Any two methods of a benchmark. The numbers were computed in Python
// (method_pairs.py); here a pair is looked up, turned around, and shown.
const comparing = (() => {
  function signed(value) {
    return (value < 0 ? '−' : '+') + Math.abs(value).toFixed(2);
  }

  // A difference of the second minus the first, as one of the first minus the second.
  function turned(difference) {
    if (!difference) return null;
    const has = difference.low !== null;
    return { ...difference, mean: -difference.mean, low: has ? -difference.high : null, high: has ? -difference.low : null };
  }

  // Two methods by their numbers, in any order; null for a method and itself.
  function pairOf(benchmark, first, second) {
    const given = benchmark.pairs.find((p) => p.first === Math.min(first, second) && p.second === Math.max(first, second));
    if (!given || first < second) return given || null;
    return {
      ...given, first, second, over_seeds: turned(given.over_seeds), over_examples: turned(given.over_examples),
      only_first: given.only_second, only_second: given.only_first,
    };
  }

  function answerOf(example, method) {
    return method.student === null ? example.teacher : example.students[method.student];
  }

  function nameOf(method, number) {
    return `${number + 1}: ${method.title}${method.where ? ` (${method.where})` : ''}`;
  }

  function leavesOutZero(difference) {
    return difference.low !== null && !(difference.low <= 0 && difference.high >= 0);
  }

  // A line of the table of tests.
  function cells(what, difference) {
    if (!difference) return [what, '–', '–', '–', '–', 'not compared: no common seeds or predictions'];
    const hasInterval = difference.low !== null;
    let verdict = 'one value: no interval';
    if (hasInterval) verdict = leavesOutZero(difference) ? 'the interval leaves out 0' : 'the interval includes 0: no difference shown';
    return [
      what, signed(difference.mean), difference.error === null ? '–' : difference.error.toFixed(2),
      hasInterval ? `${signed(difference.low)} to ${signed(difference.high)}` : '–',
      difference.p_value === null ? '–' : difference.p_value.toPrecision(2), verdict,
    ];
  }

  // What is known of a pair; `show` is called with 'only-first' or 'only-second'.
  function panel(benchmark, pair, element, show) {
    const [first, second] = [benchmark.methods[pair.first], benchmark.methods[pair.second]];
    const head = ['', 'Difference', 'Standard error', '95 % interval', 'p', ''];
    const seeds = pair.over_seeds ? pair.over_seeds.count : 0;
    const examples = pair.over_examples ? pair.over_examples.count.toLocaleString('en') : 0;
    const lines = [
      cells(`Over ${seeds} seed${seeds === 1 ? '' : 's'} (paired t-test)`, pair.over_seeds),
      cells(`Over ${examples} examples (paired bootstrap)`, pair.over_examples),
    ];
    const table = element('table', {},
      element('thead', {}, element('tr', {}, ...head.map((name) => element('th', { scope: 'col' }, name)))),
      element('tbody', {}, ...lines.map(([name, ...rest]) => element('tr', {},
        element('th', { scope: 'row' }, name), ...rest.map((cell) => element('td', {}, cell))))));
    const runs = [first, second].map((m) => m.shown).filter(Boolean).join('; ');
    const count = (number) => `${number.toLocaleString('en')} example${number === 1 ? '' : 's'}`;
    const button = (id, words, name) => element('button', { type: 'button', id, onclick: () => show(id) }, `${words}: ${name}`);
    return [
      element('p', {}, `${first.title} minus ${second.title}, in points of test accuracy.`),
      element('div', { className: 'scroll', tabIndex: 0 }, table),
      element('p', {}, `Of ${count(pair.num_shown)} that both answered${runs ? ` (${runs})` : ''}, only one is right on:`),
      element('p', { className: 'pages' },
        button('only-first', 'the first', count(pair.only_first)), button('only-second', 'the second', count(pair.only_second))),
    ];
  }

  // Row minus column for every two methods; a click picks them.
  function matrix(benchmark, chosen, element, pick) {
    const methods = benchmark.methods;
    const head = element('tr', {}, element('th', { scope: 'col' }, 'Row minus column'),
      ...methods.map((m, j) => element('th', { scope: 'col', title: nameOf(m, j) }, String(j + 1))));
    const body = methods.map((m, i) => element('tr', {}, element('th', { scope: 'row' }, nameOf(m, i)),
      ...methods.map((_, j) => {
        const pair = pairOf(benchmark, i, j);
        const difference = pair && (pair.over_examples || pair.over_seeds);
        if (!difference) return element('td', {}, '');
        const isChosen = i === chosen.first && j === chosen.second;
        const cell = element('button', {
          type: 'button', className: (leavesOutZero(difference) ? 'sure' : 'unsure') + (isChosen ? ' picked' : ''),
          title: `${nameOf(m, i)} minus ${nameOf(methods[j], j)}`, onclick: () => pick(i, j),
        }, signed(difference.mean));
        cell.dataset.pair = `${i}-${j}`;
        return element('td', {}, cell);
      })));
    return [element('thead', {}, head), element('tbody', {}, ...body)];
  }

  return { pairOf, answerOf, nameOf, panel, matrix };
})();
