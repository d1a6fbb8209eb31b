// Requests to the API, with the token where one is set, and the stream of events, which is read again when it ends.

const TOKEN = "gateway-ops-token";
const RETRY_MS = 1500;
// An event comes every second. After this long without one, the connection is dead, whatever TCP says.
const SILENCE_MS = 10000;

export class NeedsToken extends Error {}

export const setToken = (token) => sessionStorage.setItem(TOKEN, token);

export async function ask(path, options = {}) {
  const token = sessionStorage.getItem(TOKEN);
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const response = await fetch(`api/${path}`, { ...options, headers });
  if (response.status === 401) throw new NeedsToken();
  return response;
}

export async function get(path) {
  const response = await ask(path);
  if (!response.ok) throw new Error(`${path}: status ${response.status}`);
  return response.json();
}

// Call onSnapshot with each snapshot, and onState with "live", "lost" or "locked". Returns a function that connects
// again at once, after a token was given.
export function watch(onSnapshot, onState) {
  let wake = () => {};
  async function run() {
    for (;;) {
      let state = "lost";
      try {
        await readEvents(onSnapshot, () => onState("live"));
      } catch (error) {
        if (error instanceof NeedsToken) state = "locked";
      }
      onState(state);
      await new Promise((resolve) => {
        wake = resolve;
        if (state === "lost") setTimeout(resolve, RETRY_MS);
      });
    }
  }
  run();
  return () => wake();
}

async function readEvents(onSnapshot, onOpen) {
  const aborting = new AbortController();
  let silence = setTimeout(() => aborting.abort(), SILENCE_MS);
  try {
    const response = await ask("events", { signal: aborting.signal });
    if (!response.ok) throw new Error(`status ${response.status}`);
    onOpen();
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      clearTimeout(silence);
      silence = setTimeout(() => aborting.abort(), SILENCE_MS);
      text += value;
      const events = text.split("\n\n");
      text = events.pop();
      // Only the newest counts where several came at once.
      const last = events.filter((event) => event.startsWith("event: snapshot")).pop();
      if (last) onSnapshot(JSON.parse(last.slice(last.indexOf("\ndata: ") + 7)));
    }
  } finally {
    clearTimeout(silence);
    aborting.abort();
  }
}
