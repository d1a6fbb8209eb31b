// The last 15 minutes, by route: loaded once, then continued with each snapshot.

export const KINDS = ["upload_bytes_per_second", "download_bytes_per_second", "requests_per_second", "errors_per_second"];
const POINTS = 900;

export class History {
  constructor() {
    this.times = [];
    // By route, then by kind.
    this.routes = new Map();
  }

  // Take what /api/history says.
  load(document) {
    const end = Date.parse(document.end) / 1000;
    this.times = Array.from({ length: document.points }, (_, index) => end - (document.points - 1 - index));
    this.routes = new Map(
      document.routes.map((route) => [route.route, Object.fromEntries(KINDS.map((kind) => [kind, route[kind]]))]),
    );
  }

  add(snapshot) {
    const time = Date.parse(snapshot.time) / 1000;
    const last = this.times[this.times.length - 1];
    if (last && time - last < 0.5) return;
    // After a pause nothing is known: a gap in the lines.
    const hasGap = last && time - last > 5;
    for (const at of hasGap ? [last + 1, time] : [time]) {
      this.times.push(at);
      for (const route of snapshot.routes) {
        if (!this.routes.has(route.route)) this.routes.set(route.route, this.#nothing());
      }
      const now = new Map(snapshot.routes.map((route) => [route.route, route.now]));
      for (const [name, series] of this.routes) {
        for (const kind of KINDS) series[kind].push(at === time ? (now.get(name)?.[kind] ?? 0) : null);
      }
    }
    const surplus = this.times.findIndex((at) => at > time - POINTS);
    if (surplus > 0) {
      this.times.splice(0, surplus);
      for (const series of this.routes.values()) for (const kind of KINDS) series[kind].splice(0, surplus);
    }
  }

  #nothing() {
    return Object.fromEntries(KINDS.map((kind) => [kind, Array(this.times.length - 1).fill(0)]));
  }
}

// Sums of the routes up to each one, for a stack: the whole first, so that the others are drawn over it.
export function stack(history, kind, names) {
  const sums = [];
  let below = null;
  for (const name of names) {
    const values = history.routes.get(name)?.[kind] ?? Array(history.times.length).fill(0);
    below = values.map((value, index) => (value === null ? null : value + (below ? below[index] : 0)));
    sums.push(below);
  }
  return [history.times, ...sums.reverse()];
}
