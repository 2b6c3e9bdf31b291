// Measured times, the KV cache, and other answers.
const TRACKS = DATA.tracks, PROMPT = DATA.num_prompt_tokens, GENERATED = TOKENS.length - PROMPT;
const total = (values) => values.reduce((a, b) => a + b, 0);

section(
  "Tracks",
  "The whole prompt is computed at once, as its tokens are known; the answer comes one token at a time, as each needs the one before.",
  (width) => {
    const oneByOne = total(TRACKS.one_by_one), first = TRACKS.tokens[0];
    const decode = TRACKS.tokens.map((t) => t - first);
    const end = Math.max(oneByOne, first) + decode[decode.length - 1];
    const x = (seconds) => (width - 8) * seconds / end;
    const tick = (seconds, y) => line(x(seconds), y, x(seconds), y + 16, "mark");
    const bracket = (seconds, y) => polyline([[0.5, y], [0.5, y + 5], [x(seconds), y + 5], [x(seconds), y]], "edge");
    const starts = TRACKS.one_by_one.map((_, i) => total(TRACKS.one_by_one.slice(0, i)));
    const track = (y, title, parts, seconds) => [
      label(0, y, title), parts(y + 8), decode.map((t) => tick(seconds + t, y + 8)), bracket(seconds, y + 28),
      label(0, y + 48, `first token after ${milliseconds(seconds)}`, {class: "soft"}),
    ];
    return figure(
      `Blocks are the prompt's ${plural(PROMPT, "token")}, lines the ${plural(GENERATED, "generated token")}; the axis is time, ` +
        `${milliseconds(end)} in all.`,
      picture(width, 136, "Time of the prompt at once and one token after the other",
        track(14, "at once", (y) => box(0, y, x(first), 16, "bar", milliseconds(TRACKS.block)), first),
        track(84, "one by one", (y) => TRACKS.one_by_one.map((t, i) =>
          box(x(starts[i]), y, Math.max(x(t) - 1, 0.5), 16, "bar", `${textOf(TOKENS[i].id)}: ${milliseconds(t)}`)), oneByOne)));
  },
  () => {
    const oneByOne = total(TRACKS.one_by_one);
    const each = TRACKS.time_per_output_token;
    return numbers(
      table("Times", ["", "time", "per token"], [
        ["prompt at once", milliseconds(TRACKS.block), milliseconds(TRACKS.block / PROMPT)],
        ["prompt one by one", milliseconds(oneByOne), milliseconds(oneByOne / PROMPT)],
        ["first token after", milliseconds(TRACKS.time_to_first_token), ""],
        ["each further token", "", each ? milliseconds(each) : "-"],
        ["one by one / at once", `${(oneByOne / TRACKS.block).toFixed(1)} times`, ""],
      ]),
      table("Generated tokens", ["token", "after"], TRACKS.tokens.map((t, i) => [textOf(TOKENS[PROMPT + i].id), milliseconds(t)])));
  },
);

const CACHE = DATA.cache;
const bytesPerToken = total(CACHE.layers.map((l) => 2 * l.kv_heads * (l.head_dim * l.bytes + l.scale_bytes)));
function formula() {
  const [first] = CACHE.layers;
  if (!CACHE.layers.every((l) => l.kv_heads === first.kv_heads && l.head_dim === first.head_dim)) {
    return `${count(bytesPerToken)} bytes a token, over ${CACHE.layers.length} layers of several kinds`;
  }
  const vector = first.scale_bytes ? `(${first.head_dim} × ${first.bytes} + ${first.scale_bytes})` : `${first.head_dim} × ${first.bytes}`;
  return `${CACHE.layers.length} layers × ${first.kv_heads} KV heads × ${vector} bytes × 2 (key and value) = ${count(bytesPerToken)} bytes a token`;
}

section(
  "KV cache",
  "What a token contributed to attention, its keys and values, is kept in pages, so that no later step computes it again.",
  (width) => {
    const filled = state.at + 1, size = CACHE.page_size;
    const pages = Math.ceil(TOKENS.length / size);
    const columns = Math.max(4, Math.min(size, Math.floor((width - 2) / 14)));
    const cell = (width - 2) / columns, rows = Math.ceil(size / columns), height = rows * 12 + 20;
    const cells = [];
    for (let i = 0; i < pages * size; ++i) {
      const page = Math.floor(i / size), at = i % size;
      const name = i >= filled ? "empty" : TOKENS[i].role === "generated" ? "second" : "filled";
      cells.push(box(1 + (at % columns) * cell, page * height + 18 + Math.floor(at / columns) * 12, cell - 2, 10, name,
        i < filled ? textOf(TOKENS[i].id) : null));
    }
    const used = Math.ceil(filled / size);
    return figure(
      `When ${textOf(chosen().id)} has been read: ${plural(filled, "token")} in ${plural(used, "page")} of ${size}, ` +
        `${bytesText(used * CACHE.bytes_per_page)} (${CACHE.dtype}). ${formula()}.`,
      picture(width, pages * height, "Pages of the cache, by token",
        Array.from({length: pages}, (_, i) => label(0, i * height + 12, `page ${i + 1}`, {class: "soft"})), cells));
  },
  (width) => {
    const cached = TRACKS.tokens.map((t, i) => (i ? t - TRACKS.tokens[i - 1] : t)).slice(0, CACHE.uncached.length);
    const without = CACHE.uncached.map((t, i) => (i ? t - CACHE.uncached[i - 1] : t));
    const height = 170, left = 64, bottom = 22;
    const most = Math.max(...cached, ...without);
    const x = (i) => left + (width - left - 8) * i / Math.max(without.length - 1, 1);
    const y = (seconds) => 8 + (height - bottom - 8) * (1 - seconds / most);
    const mean = (values) => total(values.slice(1)) / Math.max(values.length - 1, 1);
    return figure(
      `Time of each generated token, without the cache (upper line) and with it (lower line): ${milliseconds(mean(without))} and ` +
        `${milliseconds(mean(cached))} on average, after the first. The tokens are ${CACHE.equal ? "the same" : "NOT the same"}.`,
      picture(width, height, "Time per token with and without the cache",
        [0, 0.5, 1].map((share) => [line(left, y(share * most), width - 8, y(share * most), "axis"),
          label(left - 4, y(share * most) + 4, milliseconds(share * most), {"text-anchor": "end", class: "soft"})]),
        label(left, height - 4, "token 1", {class: "soft"}),
        label(width - 8, height - 4, `token ${without.length}`, {"text-anchor": "end", class: "soft"}),
        polyline(without.map((t, i) => [x(i), y(t)]), "curve second"),
        polyline(cached.map((t, i) => [x(i), y(t)]), "curve")));
  },
  () => numbers(
    table("The cache", ["", "value"], [["bytes per token", count(bytesPerToken)], ["tokens per page", CACHE.page_size],
      ["bytes per page", count(CACHE.bytes_per_page)], ["pages in the end", Math.ceil(TOKENS.length / CACHE.page_size)],
      ["type", CACHE.dtype]]),
    table("Time per token", ["token", "without the cache", "with it"], CACHE.uncached.map((t, i) => [textOf(TOKENS[PROMPT + i].id),
      milliseconds(i ? t - CACHE.uncached[i - 1] : t), milliseconds(i ? TRACKS.tokens[i] - TRACKS.tokens[i - 1] : TRACKS.tokens[0])]))),
);

// The answers as a tree: a node has the tokens that all answers through it share, and those that go on.
function treeOf(answers, depth) {
  let shared = depth;
  const [first] = answers;
  while (shared < first.ids.length && answers.every((a) => a.ids[shared] === first.ids[shared])) ++shared;
  const next = new Map();
  for (const answer of answers) {
    if (shared >= answer.ids.length) continue;
    next.set(answer.ids[shared], [...(next.get(answer.ids[shared]) ?? []), answer]);
  }
  return {ids: first.ids.slice(depth, shared), answers, children: Array.from(next.values(), (group) => treeOf(group, shared))};
}

section(
  "Several answers",
  DATA.answers.greedy
    ? `Greedy decoding has one answer; other seeds at temperature ${DATA.answers.temperature} have others: they share their beginning and part where a draw differs.`
    : "Other seeds draw other tokens: the answers share their beginning and part where a draw differs.",
  () => {
    const height = 24, unit = 7.4;
    const parts = [];
    let rows = 0, width = 0;
    const place = (node, x) => {
      const text = node.ids.map(textOf).join("");
      const size = text.length * unit + 12;
      const children = node.children.map((child) => place(child, x + size + 28));
      const y = children.length ? total(children) / children.length : rows++ * height;
      const own = node.answers.some((a) => a.seed === DATA.settings.seed);
      parts.push(label(x, y + 15, text || "(the end)", own ? {"font-weight": "bold"} : {}));
      node.children.forEach((_, i) => parts.push(polyline([[x + size, y + 11], [x + size + 24, children[i] + 11]], "edge")));
      if (!children.length) {
        const seeds = `seed ${node.answers.map((a) => a.seed).join(", ")}`;
        parts.push(label(x + size + 8, y + 15, seeds, {class: "soft"}));
        width = Math.max(width, x + size + 8 + seeds.length * unit);
      }
      return y;
    };
    place(treeOf(DATA.answers.answers, 0), 0);
    return figure("Bold: the answer of this page.",
      el("div", {class: "scroll", tabindex: 0, role: "region", "aria-label": "Tree of answers"},
        picture(Math.ceil(width), rows * height, "Answers of several seeds as a tree", parts)));
  },
  () => numbers(table("Answers", ["seed", "answer"],
    DATA.answers.answers.map((a) => [a.seed, a.ids.map(textOf).join("")]), [1])),
);
