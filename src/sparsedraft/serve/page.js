// The chat page. Text goes into text nodes only, so nothing that a model writes is read as HTML.
"use strict";

const $ = (id) => document.getElementById(id);
const ALONE = "none";
let chat = [];
let running = null; // the AbortController of what is under way

function element(kind, name, parent) {
  const made = document.createElement(kind);
  made.className = name;
  parent.append(made);
  return made;
}

function settings(drafter) {
  const body = { model: $("model").textContent, temperature: Number($("temperature").value) };
  body.max_tokens = Number($("tokens").value);
  body.draft_model = drafter;
  if (drafter !== ALONE && $("k").value !== "") body.num_draft_tokens = Number($("k").value);
  return body;
}

// The events of a streamed reply, as objects; an error of the server is thrown with its sentence.
async function* events(body, signal) {
  const headers = { "Content-Type": "application/json" };
  if ($("key").value) headers.Authorization = `Bearer ${$("key").value}`;
  const reply = await fetch("/v1/chat/completions", { method: "POST", headers, signal, body: JSON.stringify(body) });
  if (!reply.ok) throw new Error((await reply.json()).error.message);
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new Error("the server has gone away.");
    rest += value;
    const lines = rest.split("\n\n");
    rest = lines.pop();
    for (const line of lines) {
      const data = line.slice("data: ".length);
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

// Streams one answer into `place`; its text, and what it took.
async function answer(messages, drafter, place, signal) {
  const text = element("span", "", place);
  const told = element("span", "told", place);
  const body = { ...settings(drafter), messages, stream: true, include_metrics: true };
  const start = performance.now();
  let whole = "";
  let steps = 0;
  let end = null;
  for await (const event of events(body, signal)) {
    for (const choice of event.choices) {
      const piece = choice.delta.content || "";
      if (choice.from_drafts === undefined) continue; // the chunk that begins the answer
      steps += 1;
      if (choice.from_drafts) element("b", "draft", text).textContent = choice.from_drafts;
      text.append(piece.slice(choice.from_drafts.length));
      whole += piece;
    }
    if (event.metrics) end = event.metrics.speculative_decoding[0];
    const seconds = (performance.now() - start) / 1000;
    told.textContent = `${steps} steps, ${seconds.toFixed(1)} s`;
    if (end) {
      const tokens = end.num_tokens;
      told.textContent =
        `${(tokens / seconds).toFixed(1)} tokens/s, ${end.mean_acceptance_length.toFixed(2)} tokens a step, ` +
        `${tokens} tokens in ${seconds.toFixed(1)} s`;
      end = { whole, rate: tokens / seconds };
    }
  }
  return end;
}

// Runs `work` as the only thing under way, and shows what goes wrong in `place`.
async function alone(place, work) {
  running = new AbortController();
  for (const id of ["send", "race"]) $(id).disabled = true;
  $("stop").disabled = false;
  try {
    await work(running.signal);
  } catch (error) {
    element("span", "told wrong", place).textContent = error.name === "AbortError" ? "stopped" : error.message;
  }
  running = null;
  for (const id of ["send", "race"]) $(id).disabled = false;
  $("stop").disabled = true;
}

function asked() {
  const text = $("prompt").value.trim();
  if (!text || running) return null;
  $("prompt").value = "";
  element("div", "turn user", $("log")).textContent = text;
  return { role: "user", content: text };
}

$("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  const message = asked();
  if (!message) return;
  const place = element("div", "turn", $("log"));
  const messages = [...chat, message];
  await alone(place, async (signal) => {
    const done = await answer(messages, $("drafter").value, place, signal);
    chat = [...messages, { role: "assistant", content: done.whole }];
  });
});

$("race").addEventListener("click", async () => {
  const message = asked();
  if (!message) return;
  const turn = element("div", "turn", $("log"));
  const lanes = element("div", "lanes", turn);
  await alone(turn, async (signal) => {
    const found = [];
    for (const { value } of $("drafter").options) { // one after the other: each has the whole machine
      const lane = element("div", "", lanes);
      element("b", "told", lane).textContent = value === ALONE ? "the target alone" : `with ${value}`;
      found.push({ name: value, ...(await answer([message], value, lane, signal)) });
    }
    const plain = found.at(-1); // "none" is the last option
    const same = found.every((lane) => lane.whole === plain.whole);
    const drafted = found.slice(0, -1);
    const ratios = drafted.map(({ name, rate }) => {
      const times = `${(rate / plain.rate).toFixed(2)} times as fast`;
      return drafted.length > 1 ? `${name} ${times}` : times;
    });
    const greedy = Number($("temperature").value) === 0;
    const equal = same ? "the texts are equal" : greedy ? "the texts DIFFER" : "drawn texts differ";
    element("span", same || !greedy ? "told" : "told wrong", turn).textContent = [...ratios, equal].join("; ");
  });
});

$("stop").addEventListener("click", () => running && running.abort());
$("clear").addEventListener("click", () => {
  if (running) return;
  chat = [];
  $("log").replaceChildren();
});
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    $("ask").requestSubmit();
  }
});

async function begin() {
  const headers = $("key").value ? { Authorization: `Bearer ${$("key").value}` } : {};
  const reply = await fetch("/v1/models", { headers });
  const place = element("div", "turn", $("log"));
  if (!reply.ok) {
    place.textContent = (await reply.json()).error.message;
    return;
  }
  place.remove();
  const model = (await reply.json()).data[0];
  $("model").textContent = model.id;
  $("drafter").replaceChildren();
  const drafters = model.draft_models.filter((name) => name !== ALONE);
  for (const name of [...drafters, ALONE]) { // the default first, the target alone last
    const option = element("option", "", $("drafter"));
    option.value = name;
    option.textContent = name === ALONE ? "none: the target alone" : name;
  }
}
$("key").addEventListener("change", begin);
begin();
