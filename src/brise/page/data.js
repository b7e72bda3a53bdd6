// Data that stay up to date while the page is seen, links between tabs, and words for numbers and times.

import { useCallback, useEffect, useState } from "./vendor/htm-preact.js";
import { get } from "./api.js";

const EVERY_MS = 5000;

export const link = (tab, task) => `#/${tab}${task ? `/${encodeURIComponent(task)}` : ""}`;

// Asks a path now and every few seconds while the page is seen. The last value stays while the server is gone.
export function useData(path, everyMs = EVERY_MS) {
  const [state, setState] = useState({ path: null, value: null, error: null });
  const again = useCallback(async () => {
    if (!path) return;
    try {
      const value = await get(path);
      setState((old) => (old.path === path && old.value === value && !old.error ? old : { path, value, error: null }));
      window.dispatchEvent(new Event("brise-there"));
    } catch (error) {
      setState((old) => ({ path, value: old.path === path ? old.value : null, error }));
      window.dispatchEvent(new CustomEvent("brise-error", { detail: error }));
    }
  }, [path]);
  useEffect(() => {
    again();
    const timer = setInterval(() => document.hidden || again(), everyMs);
    const seen = () => document.hidden || again();
    document.addEventListener("visibilitychange", seen);
    window.addEventListener("brise-key", again);
    return () => {
      clearInterval(timer);
      document.removeEventListener("visibilitychange", seen);
      window.removeEventListener("brise-key", again);
    };
  }, [again, everyMs]);
  const isOld = state.path !== path;
  return { value: isOld ? null : state.value, error: isOld ? null : state.error, again };
}

// A time as ISO has it, to the minute or second, with the offset of this machine's zone.
export function time(seconds, withSeconds = false) {
  if (seconds == null) return "";
  const at = new Date(seconds * 1000), two = (number) => String(Math.abs(number)).padStart(2, "0");
  const offset = -at.getTimezoneOffset(), sign = offset < 0 ? "-" : "+";
  const zone = `${sign}${two(Math.trunc(offset / 60))}:${two(offset % 60)}`;
  return `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())} ${two(at.getHours())}:${two(
    at.getMinutes())}${withSeconds ? `:${two(at.getSeconds())}` : ""} ${zone}`;
}

export const percent = (share, digits = 0) => (share == null ? "not known" : `${(100 * share).toFixed(digits)} %`);

export const count = (number) => (number == null ? "not known" : number.toLocaleString("en-US"));

// Three digits that matter: under 0.001, 0.412, 3.1, 20, 1,204, 2.1e9.
export function short(value) {
  if (value == null) return "not known";
  if (Math.abs(value) >= 1e6) return value.toExponential(1).replace(".0", "").replace("e+", "e");
  if (value > 0 && value < 0.001) return "under 0.001";
  return Number(value.toPrecision(3)).toLocaleString("en-US", { maximumSignificantDigits: 3 });
}
