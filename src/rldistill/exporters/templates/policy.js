"use strict";

// Functions of one number, by the name of the activation.
const FUNCTIONS = {
  relu: (x) => Math.max(x, 0),
  tanh: Math.tanh,
  elu: (x) => (x > 0 ? x : Math.expm1(x)),
  celu: (x) => (x > 0 ? x : Math.expm1(x)),
  selu: (x) => 1.0507009873554805 * (x > 0 ? x : 1.6732632423543772 * Math.expm1(x)),
  gelu: (x) => 0.5 * x * (1 + erf(x / Math.SQRT2)),
  silu: (x) => x / (1 + Math.exp(-x)),
  mish: (x) => x * Math.tanh(softplus(x)),
  leakyrelu: (x) => (x > 0 ? x : 0.01 * x),
  relu6: (x) => Math.min(Math.max(x, 0), 6),
  sigmoid: (x) => 1 / (1 + Math.exp(-x)),
  softplus,
  softsign: (x) => x / (1 + Math.abs(x)),
  hardtanh: (x) => Math.min(Math.max(x, -1), 1),
  hardswish: (x) => (x * Math.min(Math.max(x + 3, 0), 6)) / 6,
  hardsigmoid: (x) => Math.min(Math.max(x / 6 + 0.5, 0), 1),
  logsigmoid: (x) => -softplus(-x),
  tanhshrink: (x) => x - Math.tanh(x),
  softshrink: (x) => (x > 0.5 ? x - 0.5 : x < -0.5 ? x + 0.5 : 0),
  hardshrink: (x) => (Math.abs(x) > 0.5 ? x : 0),
  cos: Math.cos,
  log: Math.log,
  negate: (x) => -x,
};

function softplus(x) {
  return x > 20 ? x : Math.log1p(Math.exp(x));
}

// Abramowitz and Stegun 7.1.26 for large numbers, the Taylor series for small ones; the error is below 2e-7.
function erf(x) {
  if (Math.abs(x) < 1) {
    let term = x, sum = x;
    for (let n = 1; n < 15; n++) {
      term *= (-x * x) / n;
      sum += term / (2 * n + 1);
    }
    return (2 / Math.sqrt(Math.PI)) * sum;
  }
  const t = 1 / (1 + 0.3275911 * Math.abs(x));
  const poly = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
  return Math.sign(x) * (1 - poly * Math.exp(-x * x));
}

// Time until an object is level with a target along an axis, and their distance across it; walls reflect the object.
function meeting(position, speed, target, along, [low, end]) {
  const across = 1 - along, high = end - 1, period = 2 * Math.max(high - low, 1);
  const distance = target[along] - position[along], moves = distance * speed[along] > 0;
  if (!moves && distance !== 0) return [0, 0];
  const frames = moves ? distance / speed[along] : 0;
  const shifted = position[across] + frames * speed[across] - low;
  const folded = shifted - period * Math.floor(shifted / period);
  return [1 / (1 + frames), low + Math.min(folded, period - folded) - target[across]];
}

const size = (shape) => shape.reduce((a, b) => a * b, 1);

// One function for each kind of operation: its result as numbers, for its inputs, arrays, settings and node.
const OPERATIONS = {
  constant: (_, arrays) => arrays.value,
  reshape: ([x]) => x,
  slice([x], _, { start, stop, axis }, node) {
    const shape = node.inputShapes[0], inner = size(shape.slice(axis + 1)), row = shape[axis] * inner;
    const out = [];
    for (let at = 0; at < x.length; at += row) out.push(...x.slice(at + start * inner, at + stop * inner));
    return out;
  },
  transpose([x], _, __, node) {
    const [a, b, c] = node.inputShapes[0], out = new Float32Array(x.length);
    for (let i = 0; i < a * b; i++) for (let k = 0; k < c; k++) out[k * a * b + i] = x[i * c + k];
    return out;
  },
  one_hot([x], _, { sizes }) {
    return sizes.flatMap((size, k) => Array.from({ length: size }, (_, i) => (x[k] === i ? 1 : 0)));
  },
  standardize: ([x], { mean, std }) => x.map((v, i) => (v - mean[i % mean.length]) / std[i % std.length]),
  clip: ([x], { low, high }) => x.map((v, i) => Math.min(Math.max(v, low[i % low.length]), high[i % high.length])),
  concat: (inputs) => inputs.flatMap((x) => [...x]),
  linear([x], { weight, bias }) {
    return bias.map((b, o) => {
      let sum = b;
      for (let i = 0, w = o * x.length; i < x.length; i++, w++) sum += weight[w] * x[i];
      return sum;
    });
  },
  conv([x], { weight, bias }, { stride, padding }, node) {
    const [depth, height, width] = node.inputShapes[0], [channels, rows, columns] = node.shape;
    const kernel = Math.sqrt(weight.length / channels / depth), out = new Float32Array(size(node.shape));
    for (let o = 0; o < channels; o++)
      for (let r = 0; r < rows; r++)
        for (let c = 0; c < columns; c++) {
          let sum = bias[o];
          for (let d = 0; d < depth; d++)
            for (let i = 0; i < kernel; i++) {
              const y = r * stride + i - padding;
              if (y < 0 || y >= height) continue;
              for (let j = 0; j < kernel; j++) {
                const at = c * stride + j - padding;
                if (at >= 0 && at < width)
                  sum += weight[((o * depth + d) * kernel + i) * kernel + j] * x[(d * height + y) * width + at];
              }
            }
          out[(o * rows + r) * columns + c] = sum;
        }
    return out;
  },
  max_pool([x], _, { kernel, stride, padding }, node) {
    const [, height, width] = node.inputShapes[0], [depth, rows, columns] = node.shape;
    const out = new Float32Array(size(node.shape));
    for (let d = 0; d < depth; d++)
      for (let r = 0; r < rows; r++)
        for (let c = 0; c < columns; c++) {
          let best = -Infinity;
          for (let i = 0; i < kernel; i++)
            for (let j = 0; j < kernel; j++) {
              const y = r * stride + i - padding, at = c * stride + j - padding;
              if (y >= 0 && y < height && at >= 0 && at < width) best = Math.max(best, x[(d * height + y) * width + at]);
            }
          out[(d * rows + r) * columns + c] = best;
        }
    return out;
  },
  unary: ([x], _, settings) => x.map(FUNCTIONS[settings.function]),
  add: ([a, b]) => a.map((v, i) => v + b[i]),
  multiply: ([a, b]) => a.map((v, i) => v * b[i]),
  objects([x], _, { regions, threshold }, node) {
    const [frames, height, width] = node.inputShapes[0], last = frames - 1, out = [];
    const found = regions.map(([top, bottom, left, right]) =>
      Array.from({ length: frames }, (_, t) => {
        const counts = new Array(256).fill(0), pixel = (y, x_) => x[(t * height + y) * width + x_];
        for (let y = top; y < bottom; y++) for (let c = left; c < right; c++) counts[pixel(y, c)]++;
        const background = counts.indexOf(Math.max(...counts));
        let rows = 0, columns = 0, total = 0, pixels = 0;
        for (let y = top; y < bottom; y++)
          for (let c = left; c < right; c++) {
            const difference = Math.abs(pixel(y, c) - background);
            if (difference <= threshold) continue;
            rows += difference * y;
            columns += difference * c;
            total += difference;
            pixels++;
          }
        return { at: [rows / Math.max(total, 1), columns / Math.max(total, 1)], pixels };
      }),
    );
    const movement = (object, t) =>
      object[t].pixels && object[t - 1].pixels ? [0, 1].map((axis) => object[t].at[axis] - object[t - 1].at[axis]) : [0, 0];
    for (const object of found) {
      out.push(...object[last].at);
      for (let t = last; t > 0; t--) out.push(...movement(object, t));
    }
    out.push(...found.map((object) => object[last].pixels));
    const both = (a, b) => found[a][last].pixels > 0 && found[b][last].pixels > 0;
    found.forEach((_, a) =>
      found.slice(a + 1).forEach((other, i) =>
        out.push(...[0, 1].map((axis) => (both(a, a + 1 + i) ? found[a][last].at[axis] - other[last].at[axis] : 0))),
      ),
    );
    if (frames < 2) return out;
    found.forEach((object, a) =>
      found.forEach((other, b) => {
        if (a === b) return;
        for (const along of [1, 0]) {
          const walls = regions[a].slice(2 * (1 - along), 2 * (1 - along) + 2);
          out.push(...(both(a, b) ? meeting(object[last].at, movement(object, last), other[last].at, along, walls) : [0, 0]));
        }
      }),
    );
    return out;
  },
  tree([x], { feature, threshold, left, right, value }, _, node) {
    let at = 0, n = size(node.shape);
    while (feature[at] >= 0) at = x[feature[at]] <= threshold[at] ? left[at] : right[at];
    return value.slice(at * n, (at + 1) * n);
  },
  mask: ([x, legal], _, { value }) => x.map((v, i) => (legal[i] ? v : value)),
  positive: ([x]) => x.map((v) => (v > 0 ? 1 : 0)),
  argmax([x], _, { sizes }) {
    let start = 0;
    return sizes.map((size) => {
      let best = 0;
      for (let i = 1; i < size; i++) if (x[start + i] > x[start + best]) best = i;
      start += size;
      return best;
    });
  },
};

// Policy of a program and its weights, which are float32 numbers in base64.
class Policy {
  constructor(program) {
    this.program = program;
    const bytes = Uint8Array.from(atob(program.weights), (c) => c.charCodeAt(0));
    this.weights = new Float32Array(bytes.buffer);
    for (const node of program.nodes) {
      node.inputShapes = node.inputs.map((input) => program.nodes[input].shape);
      node.numbers = {};
      for (const [name, [start, stop]] of Object.entries(node.arrays)) {
        node.numbers[name] = this.weights.subarray(start, stop);
      }
    }
    this.reset();
  }

  // Starts an episode.
  reset() {
    this.state = new Float32Array(this.program.stateSize);
  }

  // Returns the most likely action and the parameters of the head for one observation: flat arrays by entry.
  step(observation) {
    const results = [];
    for (const node of this.program.nodes) {
      if (node.kind === "input") {
        const name = node.settings.name;
        const numbers = name === "state_in" ? this.state : observation[name];
        results.push(node.dtype === "float64" ? Float64Array.from(numbers) : Float32Array.from(numbers));
      } else {
        const inputs = node.inputs.map((input) => results[input]);
        results.push(Float32Array.from(OPERATIONS[node.kind](inputs, node.numbers, node.settings, node)));
      }
    }
    const { action, params, nextState } = this.program;
    if (nextState !== null) this.state = results[nextState];
    return { action: [...results[action]], params: [...results[params]] };
  }
}

if (typeof module !== "undefined") module.exports = { Policy };
