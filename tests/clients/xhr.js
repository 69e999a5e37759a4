// Runs a browser script that speaks the Chat API over XMLHttpRequest, under node, for the Python runner beside it.
//
//   node xhr.js SCRIPT BASE SERVICE POLL_MS
//
// Reads one JSON object a line ({say} or {end}) and writes one a line: {began}, {shown, from}, {ended}, {failed}.
const fs = require("fs");
const vm = require("vm");

const [, , script, base, service, poll] = process.argv;
const tell = (said) => process.stdout.write(JSON.stringify(said) + "\n");

class XMLHttpRequest {
  constructor() {
    this.readyState = 0;
    this.status = 0;
    this.sent = {};
  }
  open(method, url) {
    this.method = method;
    this.url = url;
  }
  setRequestHeader(name, value) {
    this.sent[name] = value;
  }
  overrideMimeType() {}
  async send(body) {
    let reply;
    try {
      reply = await fetch(this.url, { method: this.method, headers: this.sent, body });
      this.responseText = await reply.text();
    } catch (error) {
      tell({ failed: String(error) });
      if (this.onerror) this.onerror();
      return;
    }
    this.status = reply.status;
    this.readyState = 4;
    if (this.onreadystatechange) this.onreadystatechange();
  }
}

// What a page has around the script and no chat needs: every call on it is taken, and does nothing.
const page = new Proxy(function () {}, {
  get: (_, name) => (name === Symbol.toPrimitive ? () => "" : name === "length" ? 0 : page),
  set: () => true,
  apply: () => page,
});
const $ = Object.assign(() => page, { each: (rows, f) => (rows || []).forEach((row, n) => f(n, row)) });
const words = new Proxy({}, { get: (_, name) => String(name) });
const around = {
  XMLHttpRequest, FormData, $, document: page, clearInterval, encodeURIComponent, JSON, parseInt, Object,
  setInterval: (f) => setInterval(f, Number(poll)),
  setTimeout, console: { log() {} }, wgLanguage: "en", wgSystem: { en: { messageresponse: words } }, isIE: false,
};
around.window = around;
vm.createContext(around);
vm.runInContext(fs.readFileSync(script, "utf8"), around);

const chat = around.ChatFactory({
  baseURL: base,
  chatServiceName: service,
  debug: false,
  onStarted: () => tell({ began: chat._chatapi._chatId }),
  onEnded: () => tell({ ended: true }),
  onMessageAlert: (text) => tell({ failed: String(text) }),
  onMessageReceived: (from, type, _, text) => type === "Message" && tell({ shown: text, from }),
  onFileReceived() {},
  onDownloadFile() {},
});
chat.startChat("nickname=Ann&subject=Parcel&userData[order]=7&endpoint=web");

require("readline")
  .createInterface({ input: process.stdin })
  .on("line", (line) => {
    const asked = JSON.parse(line);
    if ("say" in asked) chat.sendMessage(asked.say);
    if ("typing" in asked) asked.typing ? chat.startTypingChat() : chat.stopTypingChat();
  })
  .on("close", () => process.exit(0));
