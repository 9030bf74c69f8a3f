"use strict";
// Shows one sample after the other. The next one comes with the reply to an answer, which is on disk by then. Names and
// texts of users become text nodes only.
(() => {
  const LONGEST_PAUSE = 60000; // milliseconds without any input that still count as work
  const SEARCH_FROM = 12; // classes from which a search is offered
  const SMALL = 128; // pixels on a side below which a picture is enlarged without blurring it
  const KEPT = 4; // contents in memory

  const element = (id) => document.getElementById(id);
  const make = (tag, text = "", properties = {}) => Object.assign(document.createElement(tag), { textContent: text, ...properties });
  const token = location.hash.slice(1);
  // by server, since another one on the same port asks about other samples
  const remember = (name, value) => sessionStorage.setItem(`${token} ${name}`, JSON.stringify(value));
  const recall = (name, otherwise) => JSON.parse(sessionStorage.getItem(`${token} ${name}`)) ?? otherwise;

  const answered = recall("answered", []); // by this window, for undo
  const place = recall("window", null) ?? String(crypto.getRandomValues(new Uint32Array(4)));
  remember("window", place);
  let task = null;
  let sample = null;
  let busy = true;
  let zoom = 1;
  let spent = 0; // milliseconds on this sample
  let last = 0;
  const chosen = new Set();
  const buttons = new Map(); // by class
  const contents = new Map(); // by index

  const ask = async (path, body) => {
    const options = { headers: { Authorization: `Bearer ${token}` } };
    if (body) {
      options.method = "POST";
      options.body = JSON.stringify({ window: place, order: order(), by: element("by").value, ...body });
    }
    let response;
    try {
      response = await fetch(path, options);
    } catch {
      throw new Error("The server does not answer. Start `lightning-al label` again, and open the address that it prints.");
    }
    if (!response.ok) throw new Error((await response.text()) || `The server answered ${response.status}.`);
    return response;
  };

  const order = () => (element("by-class").querySelector("input").checked ? "class" : "score");

  const tick = () => {
    const now = performance.now();
    if (!document.hidden) spent += Math.min(now - last, LONGEST_PAUSE);
    last = now;
  };

  const load = (index) => {
    if (!contents.has(index)) {
      contents.set(index, ask(`/api/content/${index}`).then(async (response) => {
        const type = response.headers.get("Content-Type");
        return type.startsWith("text/")
          ? { type, text: await response.text() }
          : { type, address: URL.createObjectURL(await response.blob()) };
      }));
      contents.get(index).catch(() => contents.delete(index)); // so that another try reads it again
    }
    return contents.get(index);
  };

  const forgetOthers = (wanted) => {
    for (const index of [...contents.keys()].slice(0, -KEPT)) {
      if (wanted.includes(index)) continue;
      contents.get(index).then(({ address }) => address && URL.revokeObjectURL(address), () => {});
      contents.delete(index);
    }
  };

  const render = ({ type, text, address }) => {
    if (type.startsWith("image/")) {
      const picture = make("img", "", { src: address, alt: sample.title });
      picture.onload = () => picture.classList.toggle("small", Math.max(picture.naturalWidth, picture.naturalHeight) <= SMALL);
      return picture;
    }
    if (type.startsWith("audio/")) return make("audio", "", { src: address, controls: true, autoplay: true });
    if (type.startsWith("video/")) return make("video", "", { src: address, controls: true, autoplay: true, muted: true, loop: true });
    return make("pre", text);
  };

  const setZoom = (value) => {
    zoom = Math.min(Math.max(value, 1), 8);
    element("sample").style.setProperty("--zoom", zoom);
  };

  const showContent = async (index) => {
    element("sample").replaceChildren();
    try {
      const content = await load(index);
      if (sample?.index === index) element("sample").replaceChildren(render(content));
    } catch (error) {
      if (sample?.index === index) element("note").textContent = error.message;
    }
  };

  const showProgress = ({ total, left, set_aside, per_minute }) => {
    element("bar").value = total ? (total - left) / total : 1;
    const parts = [`${total - left} of ${total} answered`, `${left} left`];
    if (set_aside) parts.push(`${set_aside} set aside`);
    if (per_minute) parts.push(`${per_minute.toFixed(per_minute < 10 ? 1 : 0)} labels per minute`);
    if (per_minute && left) parts.push(`about ${Math.ceil(left / per_minute)} min to go`);
    element("progress").textContent = parts.join(" · ");
  };

  const showSuggestion = () => {
    const top = new Map(sample.top_classes ?? []);
    const predicted = [sample.prediction ?? []].flat();
    for (const [name, button] of buttons) {
      button.classList.toggle("predicted", predicted.includes(name));
      button.querySelector("small").textContent = top.has(name) ? `${Math.round(100 * top.get(name))} %` : "";
    }
    const text = predicted.length ? `The model says ${predicted.join(", ")}.` : "";
    element("question").textContent = task.kind === "class" && text ? `${text} Enter agrees.` : text;
  };

  const show = (state) => {
    showProgress(state.progress);
    sample = state.sample;
    element("undo").disabled = !answered.length;
    element("work").hidden = !sample;
    element("done").hidden = Boolean(sample);
    if (!sample) return showSummary();
    chosen.clear();
    for (const button of buttons.values()) if (task.kind === "classes") button.setAttribute("aria-pressed", "false");
    element("search").value = element("number").value = "";
    filter();
    element("title").textContent = sample.title;
    showSuggestion();
    setZoom(1);
    showContent(sample.index);
    forgetOthers([sample.index, ...state.upcoming]);
    state.upcoming.forEach(load);
    if (task.kind === "number") element("number").focus();
    spent = 0;
    last = performance.now();
  };

  const showSummary = async () => {
    const { progress, counts, range, minutes, answers } = await (await ask("/api/summary")).json();
    element("done-title").textContent = `All ${progress.total} samples are answered`;
    const parts = [`${progress.total - progress.set_aside} labeled, ${progress.set_aside} set aside`, `${minutes.toFixed(1)} minutes`];
    if (range) parts.push(`from ${range[0]} to ${range[1]}`);
    element("done-text").textContent = `${parts.join(", ")}. You can close this page.`;
    element("counts").replaceChildren(...counts.map(([name, count]) => {
      const row = make("tr");
      row.append(make("th", name), make("td", count));
      return row;
    }));
    element("answers").replaceChildren(...answers.map(({ index, title, label }) => {
      const item = make("li", `${title}: ${label === null ? "set aside" : [label].flat().join(", ") || "none of the classes"}`);
      const again = make("button", "Ask again", { type: "button", onclick: () => undo(index) });
      item.append(again);
      return item;
    }));
  };

  // One request at a time: a key that is pressed twice must not answer the next sample.
  const once = async (work) => {
    if (busy) return;
    busy = true;
    try {
      element("note").textContent = "";
      await work();
    } catch (error) {
      element("note").textContent = error.message;
    } finally {
      busy = false;
    }
  };

  const answer = (label) => once(async () => {
    tick();
    const { index } = sample;
    const state = await (await ask("/api/answer", { index, label, seconds: Math.round(spent / 10) / 100 })).json();
    if (state.accepted) {
      answered.push(index);
      remember("answered", answered);
    } else {
      element("note").textContent = "That sample was answered in another window.";
    }
    await show(state);
  });

  const undo = (index) => once(async () => {
    const state = await (await ask("/api/undo", { index })).json();
    if (answered.includes(index)) answered.splice(answered.lastIndexOf(index), 1);
    remember("answered", answered);
    await show(state);
  });

  const undoLast = () => answered.length && undo(answered.at(-1));
  const refresh = () => once(async () => show(await (await ask(`/api/state?window=${place}&order=${order()}`)).json()));

  const choose = (name) => {
    if (task.kind === "class") return answer(name);
    chosen.has(name) ? chosen.delete(name) : chosen.add(name);
    buttons.get(name).setAttribute("aria-pressed", String(chosen.has(name)));
  };

  const save = () => {
    const number = element("number");
    if (task.kind === "classes") answer(task.classes.filter((name) => chosen.has(name)));
    else if (task.kind === "number" && Number.isFinite(number.valueAsNumber)) answer(number.valueAsNumber);
    else if (task.kind === "number") element("note").textContent = "Type a number, such as 3.5.";
    else if (task.suggest && buttons.has(sample.prediction)) answer(sample.prediction);
  };

  const filter = () => {
    const wanted = element("search").value.trim().toLowerCase();
    for (const [name, button] of buttons) button.hidden = !name.toLowerCase().includes(wanted);
  };

  const onSubmit = (event) => {
    event.preventDefault();
    const search = element("search");
    if (document.activeElement !== search || !search.value) return save();
    const first = [...buttons].find(([, button]) => !button.hidden);
    if (!first) return;
    search.value = "";
    search.blur();
    filter();
    choose(first[0]);
  };

  const ACTIONS = {
    "?": () => answer(null),
    Backspace: undoLast,
    "+": () => setZoom(zoom * 1.5),
    "=": () => setZoom(zoom * 1.5),
    "-": () => setZoom(zoom / 1.5),
    "/": () => element("search").hidden || element("search").focus(),
    Enter: save,
  };

  const onKey = (event) => {
    const { target, key } = event;
    if (key === "Escape") target.blur();
    if (element("work").hidden || event.altKey || event.metaKey || event.repeat) return;
    if (target.matches("input") && !(target.type === "number" && key === "?")) return;
    if (event.ctrlKey) {
      if (key === "z") undoLast();
      return;
    }
    if (key === "Enter" && target.matches("button, audio, video")) return;
    const name = task.keys[key.toLowerCase()];
    const action = name === undefined ? ACTIONS[key] : () => choose(name);
    if (!action) return;
    event.preventDefault();
    tick();
    action();
  };

  const start = async () => {
    task = await (await ask("/api/task")).json();
    const keys = new Map(Object.entries(task.keys).map(([key, name]) => [name, key]));
    for (const name of task.classes) {
      const button = make("button", name, { type: "button", onclick: () => choose(name) });
      button.append(make("small"));
      if (keys.has(name)) button.append(make("kbd", keys.get(name)));
      buttons.set(name, button);
    }
    if (task.kind !== "number") element("classes").replaceChildren(...buttons.values());
    element("search").hidden = task.kind === "number" || task.classes.length < SEARCH_FROM;
    element("number").hidden = task.kind !== "number";
    element("save").hidden = task.kind === "class";
    element("by-class").hidden = !task.suggest;
    element("by").value = recall("by", task.by);
    element("by").oninput = () => remember("by", element("by").value);
    element("by-class").onchange = refresh;
    element("search").oninput = filter;
    element("form").onsubmit = onSubmit;
    element("skip").onclick = () => answer(null);
    element("undo").onclick = undoLast;
    element("closer").onclick = () => setZoom(zoom * 1.5);
    element("farther").onclick = () => setZoom(zoom / 1.5);
    // a button that a pointer pressed must not keep the keys
    document.addEventListener("click", (event) => event.detail && document.activeElement.matches("button") && document.activeElement.blur());
    document.addEventListener("keydown", onKey);
    for (const type of ["pointerdown", "pointermove", "scroll", "visibilitychange"]) document.addEventListener(type, tick, { passive: true });
    busy = false;
    await refresh();
  };

  // the address of a new server differs behind the `#` only, which loads nothing by itself
  addEventListener("hashchange", () => location.reload());
  start().catch((error) => {
    element("note").textContent = error.message;
  });
})();
