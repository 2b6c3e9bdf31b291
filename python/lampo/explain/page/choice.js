// The LM head's probabilities, and what a decoding strategy makes of them.
const asDrawn = () => ({
  temperature: DATA.settings.temperature, topK: DATA.settings.top_k, topP: DATA.settings.top_p, minP: DATA.settings.min_p,
});
state.settings = asDrawn();
const known = new Map();
function candidates() {
  if (!known.has(state.at)) known.set(state.at, new Candidates(DATA.predictions[state.at]));
  return known.get(state.at);
}
const nextId = () => (state.at + 1 < TOKENS.length ? TOKENS[state.at + 1].id : null);
const SHOWN = 20;

// Cumulative share of the mass by rank, over the page's tokens and then by bins: [rank, share].
function cumulative(masses, tail, histogram) {
  const total = [...masses, ...tail].reduce((a, b) => a + b, 0);
  const points = [];
  let sum = 0, rank = 0;
  for (const m of masses) points.push([++rank, (sum += m) / total]);
  histogram.forEach(([number], bin) => points.push([(rank += number), (sum += tail[bin]) / total]));
  return points;
}

function curve(width, points, name, mark) {
  const height = 180, left = 44, bottom = 26, right = 12;
  const x = (rank) => left + (width - left - right) * Math.log10(rank) / Math.log10(VOCAB);
  const y = (share) => 8 + (height - bottom - 8) * (1 - share);
  const ticks = [];
  for (let rank = 1; rank <= VOCAB; rank *= 10) ticks.push(rank);
  return picture(width, height, name,
    [0, 0.5, 1].map((share) => [line(left, y(share), width - right, y(share), "axis"),
      label(left - 4, y(share) + 4, `${100 * share} %`, {"text-anchor": "end", class: "soft"})]),
    ticks.map((rank) => [line(x(rank), y(0), x(rank), y(0) + 4, "axis"),
      label(x(rank), height - 8, count(rank), {"text-anchor": rank === 1 ? "start" : "middle", class: "soft"})]),
    polyline(points.map(([rank, share]) => [x(rank), y(share)]), "curve"),
    mark ? [line(x(mark.rank), y(0), x(mark.rank), y(1), "mark"), line(left, y(mark.share), x(mark.rank), y(mark.share), "mark")] : null);
}

// The twenty best tokens and one row for all others, of the model's own distribution.
function headRows() {
  const c = candidates();
  const rows = c.ids.slice(0, SHOWN).map((id, i) => ({id, text: textOf(id), p: c.probability(i)}));
  const sum = rows.reduce((total, row) => total + row.p, 0);
  const rest = VOCAB - rows.length;
  if (rest > 0) rows.push({id: null, text: `${count(rest)} others`, p: Math.max(1 - sum, 0)});
  return rows;
}

section(
  "LM head",
  "From the last vector the LM head gives every token of the vocabulary a probability to come next.",
  (width) => {
    const rows = headRows();
    const next = nextId();
    return figure(
      `After ${textOf(chosen().id)}: the ${SHOWN} best, and all others together.` +
        (next === null ? "" : ` What came is ${textOf(next)}.`),
      bars(rows.map(({id, text, p}) => ({text, value: p, note: percent(p),
        name: id === null ? "cut" : id === next ? "second" : "bar"})), width, "Probabilities of the next token"),
      el("p", {}, "Sum: ", el("strong", {id: "head-sum"}, percent(rows.reduce((sum, row) => sum + row.p, 0)))));
  },
  (width) => {
    const c = candidates();
    const points = cumulative(c.logits.map((_, i) => c.probability(i) * ONE),
      c.tailMasses(1).map((m) => m * Math.exp(c.logits[0] - c.logSum)), c.tail);
    return figure("The probability that the best tokens have together, by their number (each step of the axis is ten times).",
      curve(width, points, "Cumulative probability over ranks"));
  },
  () => numbers(table(`After ${textOf(chosen().id)}`, ["token", "rank", "id", "logit", "probability", "together"],
    (() => {
      const c = candidates();
      let sum = 0;
      return headRows().map(({id, text, p}, i) => [text, id === null ? "" : i + 1, id ?? "",
        id === null ? "" : c.logits[i].toFixed(4), percent(p), percent(Math.min((sum += p), 1))]);
    })())),
);

const CONTROLS = [
  {key: "temperature", name: "Temperature", min: 0, max: 2, step: 0.05, text: (v) => (v ? v.toFixed(2) : "0 (greedy)")},
  {key: "topK", name: "Top-k", min: 0, max: 200, step: 1, text: (v) => (v ? String(v) : "off")},
  {key: "topP", name: "Top-p", min: 0.05, max: 1, step: 0.01, text: (v) => (v < 1 ? v.toFixed(2) : "off")},
  {key: "minP", name: "Min-p", min: 0, max: 0.5, step: 0.01, text: (v) => (v ? v.toFixed(2) : "off")},
];
const STRATEGIES = [
  ["greedy", {temperature: 0, topK: 0, topP: 1, minP: 0}],
  ["as drawn", asDrawn()],
  ["the model's own", {temperature: 1, topK: 0, topP: 1, minP: 0}],
  ["cool", {temperature: 0.5, topK: 0, topP: 1, minP: 0}],
  ["nucleus", {temperature: 1, topK: 0, topP: 0.9, minP: 0}],
  ["top-k", {temperature: 1, topK: 40, topP: 1, minP: 0}],
  ["min-p", {temperature: 1, topK: 0, topP: 1, minP: 0.05}],
];
const settingsText = (s) => CONTROLS.map((c) => `${c.name.toLowerCase()} ${c.text(s[c.key])}`).join(", ");
const place = () => state.at + 1; // of the token that is drawn

// The place in `ids` of the token that the seed draws with these settings; null where it is unknown.
function drawnPlace(cut, settings) {
  const c = candidates();
  const found = draw(c, cut, DATA.settings.seed, place());
  const same = CONTROLS.every(({key}) => settings[key] === asDrawn()[key]);
  if (found !== null || !same || TOKENS[place()]?.role !== "generated") return found;
  const at = c.ids.indexOf(nextId()); // recorded, where the page has too few tokens to compute it
  return at < 0 ? null : at;
}
const numberKept = (cut) => (cut.kept >= VOCAB ? "all" : (cut.exact ? "" : "about ") + count(cut.kept));

section(
  "Decoding strategy",
  "A strategy says which of these tokens may be drawn, and how likely: try one.",
  () => el("div", {class: "controls", role: "group", "aria-label": "Strategy"},
    CONTROLS.map((control) => {
      const value = state.settings[control.key];
      return el("label", {}, control.name,
        el("input", {type: "range", id: control.key, min: control.min, max: control.max, step: control.step,
          value: Math.min(Math.max(value, control.min), control.max), "aria-valuetext": control.text(value),
          oninput: (event) => {
            state.settings = {...state.settings, [control.key]: Number(event.target.value)};
            state.draws = null;
            render(event.target.id);
          }}),
        el("output", {for: control.key}, control.text(value)));
    }),
    el("button", {type: "button", class: "plain", id: "reset",
      onclick: () => { state.settings = asDrawn(); state.draws = null; render("reset"); }}, "As drawn"),
    el("button", {type: "button", class: "plain", id: "hundred", onclick: () => drawHundred()}, "Draw 100 times")),
  (width) => {
    const c = candidates(), cut = cutOf(c, state.settings);
    const drawn = drawnPlace(cut, state.settings);
    const shownTokens = Math.min(SHOWN, c.ids.length);
    const rows = c.ids.slice(0, shownTokens).map((id, i) => {
      const p = i < cut.kept ? nearest(cut.masses[i]) / cut.keptMass : 0;
      const draws = state.draws ? `  ${state.draws.get(i) ?? 0} of 100` : "";
      return {text: textOf(id), value: p, name: i === drawn ? "second" : "bar",
        note: (i < cut.kept ? percent(p) : "cut") + (i === drawn ? " drawn" : "") + draws, p};
    });
    const sum = rows.reduce((total, row) => total + row.p, 0);
    const others = Math.max(cut.kept - shownTokens, 0);
    if (others) {
      const draws = state.draws ? `  ${Array.from(state.draws).reduce((n, [i, k]) => n + (i >= shownTokens ? k : 0), 0)} of 100` : "";
      rows.push({text: `${numberKept({...cut, kept: others})} others`, value: Math.max(1 - sum, 0),
        name: drawn !== null && drawn >= shownTokens ? "second" : "cut", note: percent(Math.max(1 - sum, 0)) + draws, p: Math.max(1 - sum, 0)});
    }
    const total = rows.reduce((all, row) => all + row.p, 0);
    const said = drawn === null
      ? "what the seed draws is beyond the tokens on this page"
      : `seed ${DATA.settings.seed} draws ${textOf(c.ids[drawn])}`;
    return [
      figure(`After ${textOf(chosen().id)}: what may be drawn, and how likely.`, bars(rows, width, "Probabilities after the cuts")),
      el("p", {id: "kept"}, `Kept: ${numberKept(cut)} of ${count(VOCAB)}; ${said}. Sum: `, el("strong", {id: "strategy-sum"}, percent(total)), "."),
      el("p", {class: "note", id: "exactness"}, cut.exact
        ? "All tokens that are kept are on this page, and these are the library's own numbers and draw."
        : `This page has the ${count(c.ids.length)} best tokens; the others count by a histogram, to about 4 digits.`),
    ];
  },
  (width) => {
    const c = candidates(), cut = cutOf(c, state.settings);
    if (state.settings.temperature === 0) return null;
    const points = cumulative(cut.masses, cut.tail, c.tail);
    const share = Math.min(cut.keptMass / cut.total, 1);
    return figure(`The cut, at rank ${count(cut.kept)}, on the curve at this temperature: ${percent(share)} of the mass is kept.`,
      curve(width, points, "Cumulative probability and the cut", {rank: Math.max(cut.kept, 1), share}));
  },
  () => {
    const c = candidates();
    const rows = STRATEGIES.map(([name, settings]) => {
      const cut = cutOf(c, settings), drawn = drawnPlace(cut, settings);
      const best = c.ids.slice(0, 3).map((id, i) => (i < cut.kept ? `${textOf(id)} ${percent(nearest(cut.masses[i]) / cut.keptMass)}` : null));
      return [name, settingsText(settings), numberKept(cut), best.filter(Boolean).join(", "), drawn === null ? "?" : textOf(c.ids[drawn])];
    });
    return table("Strategies side by side, after the chosen token", ["strategy", "settings", "kept", "likely", "the seed draws"], rows, [0, 1, 3, 4]);
  },
  () => {
    const c = candidates(), cut = cutOf(c, state.settings);
    return numbers(table(`With ${settingsText(state.settings)}`, ["token", "rank", "probability", "own probability"],
      c.ids.slice(0, Math.min(cut.kept, 50)).map((id, i) => [textOf(id), i + 1, percent(nearest(cut.masses[i]) / cut.keptMass), percent(c.probability(i))])));
  },
);

// Draws with this seed and the 99 after it; draws beyond the page's tokens count as others.
function drawHundred() {
  const c = candidates(), cut = cutOf(c, state.settings);
  state.draws = new Map();
  for (let i = 0n; i < 100n; ++i) {
    const found = draw(c, cut, BigInt(DATA.settings.seed) + i, place()) ?? c.ids.length;
    state.draws.set(found, (state.draws.get(found) ?? 0) + 1);
  }
  render("hundred");
}
