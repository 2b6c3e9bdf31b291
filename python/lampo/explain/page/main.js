// The strip of tokens, which drives the page, and the drawing of the sections.
const strip = document.getElementById("strip");
const chips = TOKENS.map((token, i) => el("button", {
  type: "button", class: token.special ? "special" : token.role, "aria-pressed": "false", tabindex: -1,
  title: `${i + 1}: id ${token.id}`, onclick: () => choose(i, true),
}, textOf(token.id)));
strip.append(...chips.map((chip) => el("li", {}, chip)));

function choose(at, focus) {
  state.at = Math.min(Math.max(at, 0), TOKENS.length - 1);
  state.draws = null;
  render();
  if (focus) chips[state.at].focus({preventScroll: true});
}

document.addEventListener("keydown", (event) => {
  if (event.target.closest("input, select, [tabindex='0']:not(button)") || event.ctrlKey || event.altKey || event.metaKey) return;
  const to = {ArrowLeft: state.at - 1, ArrowRight: state.at + 1, Home: 0, End: TOKENS.length - 1}[event.key];
  if (to === undefined || (event.key.length > 3 && !event.key.startsWith("Arrow") && !strip.contains(event.target))) return;
  event.preventDefault();
  choose(to, true);
});

const main = document.getElementById("sections");
const places = SECTIONS.map(({title, sentence, parts}, i) => {
  const slots = parts.map(() => el("div"));
  main.append(el("section", {"aria-labelledby": `section-${i}`},
    el("h2", {id: `section-${i}`}, `${i + 1}. ${title}`), el("p", {}, sentence), slots));
  return slots;
});

// Draws all sections again; tables that were opened stay open, and `focus` names the focused control.
function render(focus) {
  const width = Math.max(Math.floor(main.clientWidth), 240);
  chips.forEach((chip, i) => {
    chip.setAttribute("aria-pressed", String(i === state.at));
    chip.tabIndex = i === state.at ? 0 : -1;
  });
  const chip = chips[state.at];
  strip.scrollTop = Math.min(Math.max(strip.scrollTop, chip.offsetTop + chip.offsetHeight - strip.offsetTop - strip.clientHeight),
    chip.offsetTop - strip.offsetTop);
  const best = candidates();
  document.getElementById("chosen").textContent =
    `Token ${state.at + 1}, ${textOf(chosen().id)}; most likely next: ${textOf(best.ids[0])}, ${percent(best.probability(0))}.`;
  SECTIONS.forEach(({parts}, i) => parts.forEach((part, j) => {
    const slot = places[i][j];
    const open = slot.querySelector("details")?.open ?? false;
    slot.replaceChildren(...[part(width)].flat(Infinity).filter((child) => child != null));
    const details = slot.querySelector("details");
    if (details) details.open = open;
  }));
  if (focus) document.getElementById(focus)?.focus({preventScroll: true});
}

const {made, model, settings} = DATA;
const strategy = settings.temperature === 0 ? "greedy" : settingsText(asDrawn());
document.getElementById("summary").textContent =
  `${model.name}: ${plural(PROMPT, "prompt token")}, ${plural(GENERATED, "generated token")}, ${strategy}, seed ${settings.seed}.`;
const load = made.load === null ? "its load is unknown"
  : `${made.load.busy ? "busy meanwhile" : "quiet meanwhile"}: other processes took ${made.load.others.toFixed(1)} of ${made.cores} CPUs`;
document.getElementById("footer").append(
  el("p", {}, "Made by ", el("code", {}, made.command), ` on ${made.date} with lampo ${made.lampo}.`),
  el("p", {}, `${model.name} (${model.architecture}, ${count(model.num_parameters)} parameters, ${bytesText(model.weight_bytes)}) on ` +
    `${made.device === "cpu" ? made.cpu : made.device}, ${plural(made.threads, "thread")}, ${made.isa}; the machine was ${load}.`));

render();
let resized = 0;
new ResizeObserver(() => {
  cancelAnimationFrame(resized);
  resized = requestAnimationFrame(() => render(document.activeElement?.id));
}).observe(main);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => render());
