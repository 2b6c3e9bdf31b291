// The draw of a token as the library computes it (csrc/common/sampling.h), to the bit while all
// tokens that are kept are on the page: temperature, top-k, top-p, min-p, and the seed's noise.
const f32 = Math.fround;
const ONE = 2 ** 40; // the most likely token's mass
const BLOCK = 256; // token ids that are first drawn as one
const floatView = new Float32Array(1);
const bitsView = new Uint32Array(floatView.buffer);
const floatOf = (bits) => ((bitsView[0] = bits), floatView[0]);
const bitsOf = (float) => ((floatView[0] = float), bitsView[0]);

// 2^(y + 40) for y <= 0 in float32.
function mass(y) {
  const rounder = 12582912 + 167; // 1.5 * 2^23 + 167
  y = y > -167 ? y : -167;
  const rounded = f32(y + rounder);
  const r = f32(y - f32(rounded - rounder));
  let p = 0.001326472731307149;
  for (const next of [
    0.009671512991189957, 0.05550733581185341, 0.24022242426872253, 0.6931470036506653, 1,
  ]) p = f32(f32(p * r) + next);
  return f32(p * floatOf(bitsOf(rounded) << 23));
}
const nearest = (m) => m + 2 ** 52 - 2 ** 52; // integer, ties to even

// -ln(1 - v) of v = (random + 1/2) / 2^32 in float32.
function exponentialVariate(random) {
  const unit = (bits) => f32(f32(f32((bits >>> 16) * 65536) + f32((bits & 0xffff) + 0.5)) * 2 ** -32);
  const v = unit(random);
  const u = unit(~random >>> 0);
  const rootHalf = 0x3f3504f3;
  const above = (bitsOf(u) - rootHalf + 0x3f800000) >>> 0;
  const exponent = (above >>> 23) - 127;
  const m = floatOf((above & 0x7fffff) + rootHalf);
  const f = exponent === 0 ? -v : f32(m - 1);
  const s = f32(f / f32(2 + f));
  const square = f32(s * s);
  let series = 0.1111111119389534;
  for (const next of [0.1428571492433548, 0.20000000298023224, 0.3333333432674408, 1]) {
    series = f32(f32(series * square) + next);
  }
  const logM = f32(f32(s + s) * series);
  return f32(f32(-exponent * 0.6931471824645996) - logM);
}

function product(a, b) { // of 32-bit words: [high, low]
  const wide = BigInt(a) * BigInt(b);
  return [Number(wide >> 32n), Number(wide & 0xffffffffn)];
}

// Philox4x32-10: four words of a counter and a key.
function philox(counter, key) {
  let [a, b, c, d] = counter;
  let [k, l] = key;
  for (let round = 0; round < 10; ++round) {
    const [high0, low0] = product(0xd2511f53, a);
    const [high1, low1] = product(0xcd9e8d57, c);
    [a, b, c, d] = [(high1 ^ b ^ k) >>> 0, low1, (high0 ^ d ^ l) >>> 0, low0];
    k = (k + 0x9e3779b9) >>> 0;
    l = (l + 0xbb67ae85) >>> 0;
  }
  return [a, b, c, d];
}

const words = (value) => {
  const bits = BigInt.asUintN(64, BigInt(value));
  return [Number(bits & 0xffffffffn), Number(bits >> 32n)];
};
const TOKEN_STAGE = 0, BLOCK_STAGE = 1;

// The noise of a candidate, a token or a block by its number.
function noise(seed, position, stage, candidate) {
  const found = philox([candidate >>> 2, stage, ...words(position)], words(seed));
  return exponentialVariate(found[candidate & 3]);
}

// The distribution of a next token: the best ones, and a histogram of the others.
class Candidates {
  constructor(prediction) {
    this.ids = numbersOf(prediction.ids, "getUint32");
    this.logits = numbersOf(prediction.logits, "getFloat32");
    this.tail = prediction.tail;
    this.logSum = prediction.log_sum;
  }
  // Of the model's own distribution, by place in `ids`.
  probability(place) {
    return Math.exp(this.logits[place] - this.logSum);
  }
  // Mass of each bin of the tail at this temperature: of all of its tokens.
  tailMasses(temperature) {
    return this.tail.map(([number, mean, variance]) =>
      ONE * number * Math.exp((mean - this.logits[0]) / temperature) * (1 + variance / (2 * temperature ** 2)));
  }
}

// What temperature and cuts leave of a distribution.
//   masses: of the tokens on the page, `kept` of which can be drawn
//   total, keptMass: sums over the whole vocabulary, and over what is kept
//   exact: whether all that is kept is on the page
function cutOf(candidates, {temperature, topK, topP, minP}) {
  const size = candidates.ids.length;
  if (temperature === 0) {
    const masses = candidates.logits.map((_, i) => (i ? 0 : ONE));
    return {masses, kept: 1, keptMass: ONE, total: ONE, tail: candidates.tail.map(() => 0), exact: true};
  }
  const scale = f32(Math.min(1.4426950408889634 / f32(temperature), 3.4e38));
  const best = candidates.logits[0];
  const masses = candidates.logits.map((logit) => mass(f32(f32(logit - best) * scale)));
  const rounded = masses.map(nearest);
  const tail = candidates.tailMasses(f32(temperature));
  const numbers = candidates.tail.map(([number]) => number);
  const total = [...rounded, ...tail].reduce((a, b) => a + b, 0);
  const limit = topK > 0 ? Math.min(topK, VOCAB) : VOCAB;

  // The number of first tokens whose mass reaches a target, and theirs; beyond the page by bins.
  const reach = (target) => {
    let sum = 0;
    for (let i = 0; i < size; ++i) {
      sum += rounded[i];
      if (sum >= target) return i + 1;
    }
    let place = size;
    for (let bin = 0; bin < tail.length; ++bin) {
      if (sum + tail[bin] >= target) return place + Math.ceil(numbers[bin] * (target - sum) / tail[bin]);
      sum += tail[bin];
      place += numbers[bin];
    }
    return VOCAB;
  };
  const massOf = (number) => {
    let sum = rounded.slice(0, number).reduce((a, b) => a + b, 0);
    let left = number - size;
    for (let bin = 0; bin < tail.length && left > 0; ++bin) {
      sum += tail[bin] * Math.min(1, left / numbers[bin]);
      left -= numbers[bin];
    }
    return sum;
  };
  let kept = limit;
  if (topP < 1) kept = Math.min(kept, reach(Math.max(Math.ceil(f32(topP) * massOf(limit)), 1)));
  if (minP > 0) {
    const floor = f32(f32(minP) * ONE);
    let above = masses.findIndex((m) => !(m >= floor));
    if (above < 0) {
      const ends = candidates.tail.filter(([, mean]) => Math.exp((mean - best) / temperature) >= minP);
      above = Math.min(VOCAB, size + Math.max(ends.reduce((sum, [number]) => sum + number, 0), 1));
    }
    kept = Math.min(kept, above);
  }
  return {masses, kept, keptMass: massOf(kept), total, tail, exact: kept <= size};
}

// The place in `ids` of the token that a seed draws at a position; null where it is not on the page.
function draw(candidates, cut, seed, position) {
  if (!cut.exact) return null;
  if (cut.kept === 1) return 0;
  const blocks = new Map();
  for (let i = 0; i < cut.kept; ++i) {
    const block = Math.floor(candidates.ids[i] / BLOCK);
    blocks.set(block, (blocks.get(block) ?? 0) + nearest(cut.masses[i]));
  }
  const first = (scores) => scores.reduce((best, next) =>
    next.score > best.score || (next.score === best.score && next.number < best.number) ? next : best);
  const block = first(Array.from(blocks, ([number, sum]) =>
    ({number, score: f32(f32(sum) / noise(seed, position, BLOCK_STAGE, number))}))).number;
  const inBlock = [];
  for (let i = 0; i < cut.kept; ++i) {
    const number = candidates.ids[i];
    if (Math.floor(number / BLOCK) !== block) continue;
    inBlock.push({number, place: i, score: f32(cut.masses[i] / noise(seed, position, TOKEN_STAGE, number))});
  }
  return first(inBlock).place;
}
