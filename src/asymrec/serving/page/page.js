"use strict";
// The page is a reader of the API like any other: all it shows comes from /v1, and text is only ever set as text.

const $ = (id) => document.getElementById(id);
const state = { user: null, history: [], catalogue: null, added: null, asked: 0 };

function make(tag, text, attributes = {}) {
  const node = document.createElement(tag);
  if (text !== null) node.textContent = text;
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

function complain(message) {
  $("problem").textContent = message || "";
  $("problem").hidden = !message;
}

async function call(method, path, body) {
  const headers = { "Content-Type": "application/json" };
  const key = sessionStorage.getItem("key");
  if (key) headers.Authorization = `Bearer ${key}`;
  let answer;
  try {
    answer = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch {
    throw new Error("the server cannot be reached");
  }
  if (answer.status === 401) {
    $("key").hidden = false;
    $("key-text").focus();
  }
  const found = await answer.json().catch(() => ({ detail: `the server answered ${answer.status}` }));
  if (!answer.ok) throw new Error(found.detail);
  return found;
}

const path = (kind, id) => `/v1/${kind}/${encodeURIComponent(id)}`;

async function attempt(work) {
  try {
    await work();
    complain("");
  } catch (error) {
    complain(error.message);
  }
}

// What is served

async function showCatalogue() {
  const found = await call("GET", "/v1/catalogue");
  state.catalogue = found;
  const number = (n) => n.toLocaleString("en");
  $("about").textContent = `${found.run}, model ${found.model}: ${number(found.items)} items, catalogue version ${found.version}`;
  if (!$("add").querySelector("input[name]")) buildForm(found.columns);
}

// The history

function showHistory() {
  $("who").textContent = state.user !== null ? `user ${state.user}: ${state.history.length} items`
    : state.history.length ? `${state.history.length} items, oldest first` : "empty: what is popular";
  const lines = state.history.map((item, at) => {
    const line = make("li", null);
    const remove = make("button", "✕", { type: "button", class: "quiet", "aria-label": `Remove ${item.title}` });
    remove.addEventListener("click", () => {
      state.user = null;
      state.history.splice(at, 1);
      refresh();
      ($("history").querySelectorAll("button")[Math.min(at, state.history.length - 1)] || $("search")).focus();
    });
    line.append(make("span", item.title), remove);
    return line;
  });
  $("history").replaceChildren(...lines);
  $("clear").hidden = !state.history.length;
}

function colour(code, size) {
  return `hsl(${Math.round((code * 360) / size)} var(--rich) var(--light))`;
}

function strip(codes, shared) {
  const size = Math.max(...state.catalogue.codewords);
  const row = make("div", null, { class: "codes", role: "img", "aria-label": `codes ${codes.map((facet) => facet.join(" ")).join(", ")}` });
  codes.forEach((facet, f) => {
    const column = make("span", null, { title: `facet ${f + 1}: ${facet.join(" · ")}` });
    facet.forEach((code, l) => {
      const cell = make("i", null);
      cell.style.background = colour(code, size);
      if (shared.has(`${f} ${l} ${code}`)) cell.className = "shared";
      column.append(cell);
    });
    row.append(column);
  });
  return row;
}

async function historyCodes() {
  const shared = new Set();
  if (!state.catalogue.code_shape) return shared;
  const latest = state.history.slice(-10);
  for (const item of await Promise.all(latest.map((one) => call("GET", path("items", one.item))))) {
    item.codes.forEach((facet, f) => facet.forEach((code, l) => shared.add(`${f} ${l} ${code}`)));
  }
  return shared;
}

// What is asked: a user as known, or what stands here, with its times where each has one.
function asked() {
  if (state.user !== null) return { user: state.user };
  const latest = state.history.slice(-1000); // as many as a request may have
  const history = latest.map((one) => one.item), times = latest.map((one) => one.time);
  return times.every(Number.isFinite) ? { history, times } : { history };
}

// In the run's unit; not before the latest of the history, whose data may be of another clock.
function now() {
  const perSecond = { s: 1, ms: 1e3, us: 1e6, ns: 1e9 }[state.catalogue.time_unit ?? "s"];
  return Math.max(Math.round((Date.now() / 1000) * perSecond), state.history.at(-1)?.time ?? 0);
}

async function recommend() {
  const mine = ++state.asked;
  const found = await call("POST", "/v1/recommend", {
    ...asked(), k: Number($("k").value), exclude_seen: !$("seen").checked, codes: true,
  });
  const shared = await historyCodes();
  if (mine !== state.asked) return; // a later question is under way
  const scores = found.items.map((one) => one.score);
  const [low, high] = [Math.min(...scores), Math.max(...scores)];
  const lines = found.items.map((one, at) => {
    const line = make("li", null, String(one.item) === state.added ? { class: "new" } : {});
    const score = make("span", null, { class: "score" });
    const bar = make("span", null, { class: "bar", "aria-hidden": "true" });
    const filled = make("i", null);
    filled.style.width = `${high > low ? 10 + (90 * (one.score - low)) / (high - low) : 100}%`;
    bar.append(filled);
    score.append(bar, make("span", one.score.toFixed(2)));
    if (one.ranker !== undefined) {
      const said = `retrieval ${one.retrieval.toFixed(2)}, ranker ${(100 * one.ranker).toFixed(1)} %`;
      score.append(make("small", said, { title: "retrieval's score, and the ranker's probability that it is taken next" }));
    }
    line.append(make("span", at + 1, { class: "rank" }), make("span", one.title, { class: "title", title: `id ${one.item}` }), score);
    if (one.reasons?.length) {
      const why = one.reasons.map((reason) => `${reason.title} (${reason.similarity.toFixed(2)})`).join("; ");
      line.append(make("span", `near ${why}`, { class: "why" }));
    }
    if (one.codes) line.append(strip(one.codes, shared));
    return line;
  });
  $("best").replaceChildren(...(lines.length ? lines : [make("li", "nothing can be recommended")]));
  $("legend").hidden = !state.catalogue.code_shape;
}

function refresh() {
  showHistory();
  return attempt(recommend);
}

$("user").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(async () => {
    const id = $("user-text").value.trim();
    if (!id) return;
    const found = await call("GET", path("users", id));
    state.user = id;
    state.history = found.history;
    await refresh();
  });
});
$("user-text").addEventListener("input", later(async () => {
  const found = await call("GET", `/v1/users?limit=10&search=${encodeURIComponent($("user-text").value.trim())}`);
  $("users").replaceChildren(...found.users.map((user) => make("option", null, { value: user })));
}));
$("clear").addEventListener("click", () => {
  Object.assign(state, { user: null, history: [] });
  $("user-text").value = "";
  refresh();
  $("search").focus();
});
$("seen").addEventListener("change", refresh);
$("k").addEventListener("change", refresh);

// Search: a combobox, with the keys that one has

let choices = [], chosen = -1;

function later(work, wait = 150) {
  let timer;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(() => attempt(work), wait);
  };
}

function showFound(items) {
  choices = items;
  chosen = items.length ? 0 : -1;
  const lines = items.map((item, at) => {
    const line = make("li", item.title, { role: "option", id: `found-${at}`, "aria-selected": at === chosen });
    line.addEventListener("mousedown", (event) => { event.preventDefault(); choose(at); });
    return line;
  });
  $("found").replaceChildren(...(lines.length ? lines : [make("li", "no such title", { class: "none" })]));
  openFound(true);
}

function openFound(open) {
  $("found").hidden = !open;
  $("search").setAttribute("aria-expanded", open);
  if (open && chosen >= 0) $("search").setAttribute("aria-activedescendant", `found-${chosen}`);
  else $("search").removeAttribute("aria-activedescendant");
}

function move(step) {
  if (!choices.length) return;
  $("found").children[chosen].setAttribute("aria-selected", false);
  chosen = (chosen + step + choices.length) % choices.length;
  $("found").children[chosen].setAttribute("aria-selected", true);
  $("found").children[chosen].scrollIntoView({ block: "nearest" });
  openFound(true);
}

function choose(at) {
  state.user = null;
  $("user-text").value = "";
  state.history.push({ ...choices[at], time: now() }); // as an event that comes without a time
  $("search").value = "";
  openFound(false);
  choices = [];
  refresh();
}

$("search").addEventListener("input", later(async () => {
  const text = $("search").value.trim();
  if (!text) return openFound(false);
  const found = await call("GET", `/v1/items?limit=12&search=${encodeURIComponent(text)}`);
  if (text === $("search").value.trim()) showFound(found.items);
}));
$("search").addEventListener("keydown", (event) => {
  const open = !$("found").hidden;
  if (event.key === "ArrowDown") { event.preventDefault(); move(1); }
  else if (event.key === "ArrowUp") { event.preventDefault(); move(-1); }
  else if (event.key === "Enter" && open && chosen >= 0) { event.preventDefault(); choose(chosen); }
  else if (event.key === "Escape") openFound(false);
});
$("search").addEventListener("blur", () => openFound(false));

// A new item

function buildForm(columns) {
  const parts = [], more = [];
  for (const [name, kind] of Object.entries(columns)) {
    const place = /string/.test(kind) ? parts : more;
    const id = `column-${name}`;
    place.push(make("label", kind === "string" || kind === "large_string" ? name : `${name} (${kind.replace(/<.*?: /, "<")})`, { for: id }));
    place.push(make("input", null, { id, name, "data-kind": kind, autocomplete: "off" }));
  }
  $("columns").replaceChildren(...parts);
  $("more").append(...more);
  $("more").hidden = !more.length;
}

function cell(text, kind) {
  if (/^(large_)?string/.test(kind)) return text;
  if (/list/.test(kind) && !text.trim().startsWith("[")) {
    const parts = text.split(",").map((part) => part.trim()).filter(Boolean);
    return /string/.test(kind) ? parts : parts.map(Number);
  }
  try { return JSON.parse(text); } catch { return text; }
}

$("add").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(async () => {
    const columns = {};
    for (const input of $("add").querySelectorAll("input[name]")) {
      if (input.value.trim()) columns[input.name] = cell(input.value, input.dataset.kind);
    }
    const id = $("add-id").value.trim();
    const begun = performance.now();
    const made = await call("PUT", path("items", id), columns);
    const took = Math.round(performance.now() - begun);
    // somebody to recommend it to: who has what is nearest to it
    const { items } = await call("GET", `${path("similar", id)}?k=3`);
    const found = await call("POST", "/v1/recommend", { history: items.map((near) => near.item), k: 1000, reasons: false });
    const place = found.items.findIndex((one) => String(one.item) === id) + 1;
    $("added").textContent = `In the catalogue after ${took} ms, version ${made.version}; ` +
      `nearest are ${items.map((near) => near.title).join("; ")}. For who has these it is at place ${place || "1000 or later"}.`;
    Object.assign(state, { added: id, user: null, history: items });
    $("user-text").value = "";
    $("add").reset();
    await showCatalogue();
    await Promise.all([refresh(), showUsage()]);
  });
});

// Codebooks

async function showUsage() {
  if (!state.catalogue.code_shape) {
    $("usage-note").textContent = "This model has no codes.";
    return;
  }
  const { codebooks } = await call("GET", "/v1/codes");
  const [facets, levels] = state.catalogue.code_shape;
  const head = make("tr", null);
  head.append(make("th", "facet"), ...Array.from({ length: facets }, (_, f) => make("th", f + 1, { scope: "col" })));
  const rows = Array.from({ length: levels }, (_, l) => {
    const row = make("tr", null);
    row.append(make("th", `level ${l + 1}`, { scope: "row" }));
    for (const book of codebooks.filter((one) => one.level === l)) {
      const share = book.perplexity / book.size;
      const field = make("td", Math.round(book.perplexity), { title: `${book.used} of ${book.size} codewords are used` });
      field.style.background = `hsl(${Math.round(20 + 120 * share)} 50% ${Math.round(82 - 22 * share)}%)`;
      row.append(field);
    }
    return row;
  });
  const [thead, tbody] = [make("thead", null), make("tbody", null)];
  thead.append(head);
  tbody.append(...rows);
  $("usage").replaceChildren(thead, tbody);
}

async function start() {
  await showCatalogue();
  $("key").hidden = true;
  await Promise.all([refresh(), showUsage()]);
}

$("key").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", $("key-text").value.trim());
  attempt(start);
});
attempt(start);
