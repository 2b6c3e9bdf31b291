// Tokens, embeddings, blocks.
const chosen = () => TOKENS[state.at];

section(
  "Tokens",
  `The tokenizer cuts text into pieces from a vocabulary of ${count(VOCAB)}, and the model reads their numbers.`,
  () => {
    const token = chosen();
    const kind = token.special ? "a special token" : {
      template: "text of the chat template", prompt: "of the prompt", generated: "generated",
    }[token.role];
    const rows = token.neighbours.map((id) => [textOf(id), id, id === token.id ? "this token" : ""]);
    return [
      el("p", {}, "Token ", el("strong", {}, String(state.at + 1)), ` of ${TOKENS.length} is `,
        el("code", {}, textOf(token.id)), `, number ${count(token.id)}, ${kind}; its bytes are `,
        el("code", {}, token.bytes || "none"), "."),
      table("Its neighbours in the vocabulary", ["token", "id", ""], rows, [0, 2]),
    ];
  },
  () => numbers(table("All tokens", ["token", "place", "id", "bytes", "from"],
    TOKENS.map((t, i) => [textOf(t.id), i + 1, t.id, t.bytes, t.special ? "special" : t.role]), [0, 3, 4])),
);

section(
  "Embedding",
  `Every token stands for a vector of ${count(DATA.model.hidden_size)} numbers; tokens of similar use have similar vectors.`,
  (width) => {
    const found = DATA.embeddings[chosen().id];
    const components = new Int8Array(bytesOf(found.components).buffer);
    const columns = Math.min(components.length, Math.max(16, Math.floor(width / 8)));
    const rows = Math.ceil(components.length / columns);
    const height = rows * 10;
    const values = Array.from(components, (c) => Math.abs(c) / 127);
    while (values.length % columns) values.push(null);
    return figure(
      `The vector of ${textOf(chosen().id)}: stronger is larger, in size.` +
        (components.length < DATA.model.hidden_size ? ` The first ${components.length} of its numbers.` : ""),
      picture(width, height, `${components.length} components of the embedding, by size`,
        grid(values, columns, 0, 0, width, height)));
  },
  (width) => {
    const near = DATA.embeddings[chosen().id].nearest;
    return figure("The nearest tokens, by the cosine of the angle between their vectors.",
      bars(near.map(([id, cosine]) => ({text: textOf(id), value: Math.max(cosine, 0), note: cosine.toFixed(3)})),
        width, "Nearest tokens by cosine"));
  },
  () => {
    const found = DATA.embeddings[chosen().id];
    return numbers(
      table("The vector", ["", "value"], [["length (norm)", found.norm.toFixed(4)],
        ["largest component", found.scale.toFixed(5)],
        ...found.first.map((value, i) => [`component ${i + 1}`, value])]),
      table("Nearest tokens", ["token", "id", "cosine"], found.nearest.map(([id, c]) => [textOf(id), id, c.toFixed(4)])));
  },
);

const PARTS = {
  "embedding.tokens": "embedding", "mixer_norm": "norm", "mixer.qkv": "attention: q, k, v", "mixer.out": "attention: out",
  "feed_forward_norm": "norm", "feed_forward.gate_up": "feed-forward: gate, up", "feed_forward.up": "feed-forward: up",
  "feed_forward.down": "feed-forward: down", "norm": "norm", "lm_head": "LM head",
};
const LAYERS = DATA.model.num_layers;
const lensName = (i) => (i === 0 ? "embedding" : `block ${i}`);

section(
  "Blocks",
  `${plural(LAYERS, "block")} of attention and feed-forward add to the vector, one after the other; ` +
    "the LM head would already say something after each.",
  (width) => {
    const parts = DATA.outline.map((part) => ({...part, size: part.shape.join(" × ")}));
    const block = parts.filter((part) => part.layer === 0);
    const ofBlock = block.reduce((sum, part) => sum + part.num_parameters, 0);
    const stack = [
      ...parts.filter((part) => part.layer === null && part.name.startsWith("embedding")),
      {name: `${LAYERS} blocks, each`, size: "", num_parameters: ofBlock, strong: true},
      ...block,
      ...parts.filter((part) => part.layer === null && !part.name.startsWith("embedding")),
    ];
    const most = Math.max(...stack.map((part) => part.num_parameters));
    const height = 20, left = Math.min(220, width * 0.45);
    const notes = stack.map((part) => `${part.size}  ${part.num_parameters ? count(part.num_parameters) : "shared"}`.trim());
    const room = width - left - 8 - 7.4 * Math.max(...notes.map((note) => note.length));
    const long = (part) => Math.max(room, 16) * part.num_parameters / most;
    return figure(
      `The weights in order of use, with shapes (outputs × inputs) and numbers of parameters, ${
        count(DATA.model.num_parameters)} in all. A length is a number of parameters.`,
      picture(width, stack.length * height, "The stack of the model's weights", stack.map((part, i) => [
        label(0, i * height + 14, short((part.layer === 0 ? "– " : "") + (PARTS[part.name] ?? part.name), Math.floor(left / 7.4)),
          part.strong ? {"font-weight": "bold"} : {}),
        box(left, i * height + 3, long(part), height - 6, part.strong ? "second" : "bar"),
        label(left + long(part) + 6, i * height + 14, notes[i], {class: "soft"}),
      ])));
  },
  (width) => {
    const size = TOKENS.length, cell = Math.max(4, Math.min(14, 300 / LAYERS)), left = 70;
    const rows = DATA.lens.slice().reverse();
    const x = left + (width - left) * state.at / size;
    return figure(
      "How sure the LM head would be of its best token after each block (bottom to top), at every position " +
        "(left to right): stronger is surer. The frame is the chosen token.",
      picture(width, rows.length * cell + 4, "Probability of the best token by block and position",
        grid(rows.flatMap((layer) => layer.probabilities), size, left, 2, width - left, rows.length * cell),
        label(0, 12, lensName(LAYERS)), label(0, rows.length * cell, lensName(0)),
        shape("rect", {x, y: 1, width: Math.max((width - left) / size, 2), height: rows.length * cell + 2, class: "mark"})));
  },
  (width) => figure(
    `What it would say after ${textOf(chosen().id)}, block by block.`,
    bars(DATA.lens.map((layer, i) => ({
      text: lensName(i), value: layer.probabilities[state.at],
      note: `${short(textOf(layer.ids[state.at]), 8)} ${(100 * layer.probabilities[state.at]).toFixed(0)} %`,
    })).reverse(), width, "The best token after each block")),
  () => numbers(
    table("Weights", ["weight", "block", "shape", "format", "parameters"],
      DATA.outline.map((p) => [p.name, p.layer === null ? "" : p.layer + 1, p.shape.join(" × "), p.format, count(p.num_parameters)]), [0, 2, 3]),
    table(`After ${textOf(chosen().id)}`, ["after", "best token", "probability"],
      DATA.lens.map((layer, i) => [lensName(i), textOf(layer.ids[state.at]), percent(layer.probabilities[state.at])]), [0, 1])),
);

// The attention weights of a layer and head: rows[i][j], each within 0.4 percentage points.
const triangles = new Map();
function weightsOf(layer, head) {
  if (!triangles.has(layer)) triangles.set(layer, bytesOf(DATA.attention.triangles[layer]));
  const size = TOKENS.length, area = size * (size + 1) / 2;
  const bytes = triangles.get(layer).subarray(head * area, (head + 1) * area);
  return (i, j) => (bytes[i * (i + 1) / 2 + j] / 255) ** 2;
}
state.layer = DATA.attention.layers[Math.floor(DATA.attention.layers.length / 2)];

section(
  "Attention",
  "In every block each token gathers from the ones before it: a row of weights, 100 % in all, says how much from which.",
  () => {
    const heads = DATA.attention.heads[DATA.attention.layers.indexOf(state.layer)];
    const choose = (name, values, value, to) => el("label", {}, `${name} `,
      el("select", {onchange: (event) => { to(Number(event.target.value)); render(); }},
        values.map((v) => el("option", {value: v, selected: v === value}, String(v + 1)))));
    return el("div", {class: "controls"},
      choose("Block", DATA.attention.layers, state.layer, (v) => { state.layer = v; state.head = 0; }),
      choose("Head", Array.from({length: heads}, (_, i) => i), state.head, (v) => { state.head = v; }));
  },
  (width) => {
    const size = TOKENS.length, weights = weightsOf(state.layer, state.head);
    const side = Math.min(width, 480);
    const values = [];
    for (let i = 0; i < size; ++i) for (let j = 0; j < size; ++j) values.push(j <= i ? Math.sqrt(weights(i, j)) : null);
    return figure(
      `Who looks (rows, top to bottom) at whom (columns): block ${state.layer + 1}, head ${state.head + 1}. ` +
        "Stronger is more; the frame is the chosen token's row.",
      picture(side, side, "Attention weights as a triangle",
        grid(values, size, 0, 0, side, side), line(0, 0, side, side, "axis"),
        shape("rect", {x: 0, y: side * state.at / size, width: Math.max(side * (state.at + 1) / size, 2),
          height: Math.max(side / size, 2), class: "mark"})));
  },
  (width) => {
    const top = attended().slice(0, 8);
    return figure(`Where ${textOf(chosen().id)} looks.`,
      bars(top.map(([i, weight]) => ({text: `${i + 1} ${textOf(TOKENS[i].id)}`, value: weight, note: `${(100 * weight).toFixed(1)} %`})),
        width, "The most attended tokens"));
  },
  () => numbers(table(`Weights of ${textOf(chosen().id)}, each within 0.4 percentage points`, ["token", "place", "weight"],
    attended().map(([i, weight]) => [textOf(TOKENS[i].id), i + 1, `${(100 * weight).toFixed(1)} %`]))),
);
function attended() {
  const weights = weightsOf(state.layer, state.head);
  return TOKENS.slice(0, state.at + 1).map((_, i) => [i, weights(state.at, i)]).sort((a, b) => b[1] - a[1]);
}
