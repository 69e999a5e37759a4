// As much of a browser as the status page uses: elements, timers that a test fires, and a stream that a test feeds.
"use strict";

class Element {
  constructor(name) {
    Object.assign(this, { name, children: [], parent: null, attributes: {}, dataset: {}, className: "" });
    Object.assign(this, { title: "", hidden: false, text: "" });
  }
  get textContent() { return this.text + this.children.map((each) => each.textContent).join(""); }
  set textContent(text) { this.children = []; this.text = String(text); }
  get firstElementChild() { return this.children[0] ?? null; }
  get lastElementChild() { return this.children.at(-1) ?? null; }
  get nextElementSibling() { return this.parent.children[this.parent.children.indexOf(this) + 1] ?? null; }
  get tHead() { return this.children.find((each) => each.name === "thead") ?? null; }
  get tBodies() { return this.children.filter((each) => each.name === "tbody"); }
  get classList() {
    return { toggle: (word, on) => {
      const words = this.className.split(" ").filter((each) => each && each !== word);
      this.className = (on ? [...words, word] : words).join(" ");
    } };
  }
  setAttribute(key, value) { this.attributes[key] = String(value); }
  getAttribute(key) { return this.attributes[key] ?? null; }
  append(...added) { for (const each of added) { each.parent = this; this.children.push(each); } }
  after(added) {
    added.parent = this.parent;
    this.parent.children.splice(this.parent.children.indexOf(this) + 1, 0, added);
  }
  remove() { this.parent.children.splice(this.parent.children.indexOf(this), 1); }
  replaceChildren(...added) { this.children = []; this.append(...added); }
}

const elements = {};
const document = {
  title: "asyncchatd", hidden: false, body: new Element("body"),
  createElement: (name) => new Element(name),
  createElementNS: (_, name) => new Element(name),
  getElementById: (id) => elements[id] ?? null,
  addEventListener() {},
};
const location = { origin: "http://localhost", pathname: "/" };
function addEventListener() {}

function build(found) {
  for (const [name, id] of found) {
    elements[id] = new Element(name);
    document.body.append(elements[id]);
  }
}

const timers = new Map();
let timer = 0;
function setTimeout(call, ms) { timers.set(++timer, [call, ms]); return timer; }
function clearTimeout(which) { timers.delete(which); }
function fire(ms) {
  for (const [which, [call, after]] of [...timers]) if (after === ms) { timers.delete(which); call(); }
}

class AbortController { signal = {}; abort() { stream.fail(Object.assign(new Error("aborted"), { name: "AbortError" })); } }
class TextDecoderStream {}

const stream = {
  asked: [], parts: [], reader: null, refused: null,
  push(value) { this.parts.push({ done: false, value }); this.flow(); },
  end() { this.parts.push({ done: true }); this.flow(); },
  fail(error) { this.reader?.[1](error); this.reader = null; },
  flow() {
    if (!this.reader || !this.parts.length) return;
    const [give] = this.reader;
    this.reader = null;
    give(this.parts.shift());
  },
  read() { return new Promise((...ends) => { this.reader = ends; this.flow(); }); },
};

async function fetch(url) {
  stream.asked.push(url);
  if (stream.refused) {
    const { status, answer } = stream.refused;
    return { ok: false, status, json: async () => answer };
  }
  return { ok: true, body: { pipeThrough: () => ({ getReader: () => stream }) } };
}
