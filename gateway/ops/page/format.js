// Numbers for people: few digits, SI units, as in the gateway's messages.

const UNITS = ["B", "kB", "MB", "GB", "TB"];

export function bytes(size) {
  let index = 0;
  while (index < UNITS.length - 1 && Math.round(size) >= 1000) {
    size /= 1000;
    index += 1;
  }
  return `${index && size < 10 ? size.toFixed(1) : Math.round(size)} ${UNITS[index]}`;
}

export const rate = (size) => `${bytes(size)}/s`;

export function perSecond(value) {
  if (value === 0) return "0";
  if (value < 0.095) return "< 0.1";
  return value < 10 ? value.toFixed(1) : Math.round(value).toLocaleString("en");
}

// A time with its largest one or two units: 850 ms, 3.2 s, 48 s, 3 min 20 s, 2 h 5 min.
export function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value < 0.001) return "0 s";
  if (value < 1) return `${Math.round(value * 1000)} ms`;
  if (value < 10) return `${value.toFixed(1)} s`;
  if (value < 100) return `${Math.round(value)} s`;
  const whole = Math.round(value);
  if (whole < 600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  if (whole < 3600) return `${Math.round(whole / 60)} min`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

export const clock = (time) => new Date(time).toLocaleTimeString("en-GB");

export const ago = (time, now) => `${seconds(Math.max(0, Math.round((now - new Date(time)) / 1000)))} ago`;

export const count = (value, noun) => `${value.toLocaleString("en")} ${noun}${value === 1 ? "" : "s"}`;

// What an exchange waits for, in words, and on whose account that time is.
export const LEGS = {
  downstream_read: { who: "client", text: "client to send" },
  downstream_write: { who: "client", text: "client to read" },
  upstream_write: { who: "upstream", text: "upstream to read" },
  upstream_read: { who: "upstream", text: "upstream to send" },
  connect: { who: "upstream", text: "connection" },
  upstream_response: { who: "model", text: "model to respond" },
  disk_write: { who: "disk", text: "disk to write" },
  disk_read: { who: "disk", text: "disk to read" },
  queue: { who: "queue", text: "free slot" },
  filter: { who: "filter", text: "filter" },
};

export const ACCOUNTS = ["client", "upstream", "model", "disk", "queue", "filter"];

// The shares of each account in the seconds so far, those of 0 left out.
export function shares(waitSeconds) {
  const sums = Object.fromEntries(ACCOUNTS.map((who) => [who, 0]));
  let total = 0;
  for (const [leg, spent] of Object.entries(waitSeconds)) {
    sums[LEGS[leg].who] += spent;
    total += spent;
  }
  if (!total) return [];
  return ACCOUNTS.map((who) => ({ who, seconds: sums[who], share: sums[who] / total })).filter((each) => each.seconds);
}
