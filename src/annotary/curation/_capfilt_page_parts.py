"""The parts of CapFilt's page that are always the same: how it looks, and the little script that sorts and filters."""

from __future__ import annotations

HEAD = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>CapFilt: what was kept and dropped</title>
<style>
:root { color-scheme: light dark; --page: #fff; --card: #f6f7f8; --ink: #1b1f23; --pale: #59636e; --line: #d5d9de;
  --kept: #116329; --kept-back: #dafbe1; --dropped: #a40e26; --dropped-back: #ffebe9; --bar: #4b6bdc; }
@media (prefers-color-scheme: dark) { :root { --page: #0f1215; --card: #191d22; --ink: #e6e9ec; --pale: #a0a9b4;
  --line: #343b44; --kept: #7ee2a0; --kept-back: #12301c; --dropped: #ff9c96; --dropped-back: #3a1518;
  --bar: #8aa4ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1240px; padding: 16px; background: var(--page); color: var(--ink);
  font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.35rem; margin: 0 0 4px; }
h3 { font-size: .8rem; margin: 0 0 6px; color: var(--pale); font-weight: 600; }
p { margin: 4px 0 10px; overflow-wrap: anywhere; }
table { border-collapse: collapse; margin-bottom: 8px; }
th, td { padding: 4px 12px 4px 0; text-align: right; border-bottom: 1px solid var(--line); font-weight: 400; }
tr:first-child th { color: var(--pale); font-size: .85rem; }
th:first-child { text-align: left; }
td { font-variant-numeric: tabular-nums; white-space: nowrap; }
p.why { color: var(--pale); font-size: .85rem; }
#controls { position: sticky; top: 0; z-index: 1; display: flex; flex-wrap: wrap; gap: 8px 16px; align-items: center;
  padding: 10px 0; background: var(--page); border-bottom: 1px solid var(--line); }
label { color: var(--pale); }
select, input { font: inherit; color: var(--ink); background: var(--card); border: 1px solid var(--line);
  border-radius: 6px; padding: 4px 6px; max-width: 100%; }
output { color: var(--pale); margin-left: auto; }
article { display: grid; grid-template-columns: 240px 1fr 1fr; gap: 8px 20px; margin: 14px 0; padding: 12px;
  background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
article[hidden] { display: none; }
section { min-width: 0; }
figure { margin: 0; min-width: 0; }
img { display: block; max-width: 100%; border-radius: 4px; }
.gone { padding: 48px 12px; text-align: center; color: var(--pale); border: 1px dashed var(--line);
  border-radius: 4px; }
figcaption { margin-top: 4px; font-size: .75rem; color: var(--pale); overflow-wrap: anywhere; }
ul { list-style: none; margin: 0; padding: 0; }
li { margin: 0 0 8px; padding: 6px 10px; border-left: 4px solid var(--kept); background: var(--page);
  border-radius: 4px; }
li.dropped { border-left-color: var(--dropped); }
li p { margin: 0 0 4px; }
li.dropped p { color: var(--pale); }
li div { display: flex; flex-wrap: wrap; gap: 4px 10px; align-items: center; font-size: .8rem; color: var(--pale); }
b { padding: 0 7px; border-radius: 9px; color: var(--kept); background: var(--kept-back); font-weight: 600; }
.dropped b { color: var(--dropped); background: var(--dropped-back); }
.bar { display: inline-block; width: 70px; height: 6px; border-radius: 3px; background: var(--line); overflow: hidden; }
.bar span { display: block; height: 100%; background: var(--bar); }
.score { font-variant-numeric: tabular-nums; color: var(--ink); }
.from::before { content: "from "; }
.none { color: var(--pale); font-style: italic; }
@media (max-width: 760px) { article { grid-template-columns: 1fr; } output { margin-left: 0; }
  #controls { position: static; } }
</style></head><body><header>
<h1>CapFilt: what was kept and dropped</h1>
"""

END = """</main>
<script>
"use strict";
const main = document.querySelector("main"), all = [...main.children];
const show = document.getElementById("show"), order = document.getElementById("order");
const words = document.getElementById("words"), count = document.getElementById("count");
all.forEach(one => {
  one.text = one.textContent.toLowerCase();
  one.name = one.querySelector("figcaption").textContent;
});
const shows = {
  all: () => true,
  dropped: data => (data.web + data.synthetic).includes("d"),
  whole: data => !(data.web + data.synthetic).includes("d"),
  synthetic: data => data.web.includes("d") && data.synthetic === "k",
  web: data => data.synthetic === "d" && data.web.includes("k"),
};
const orders = {
  low: (one, other) => one.dataset.low - other.dataset.low,
  high: (one, other) => other.dataset.high - one.dataset.high,
  name: () => 0,
};
function update() {
  const wanted = words.value.toLowerCase().trim();
  let shown = 0;
  const by = (one, other) => one.name < other.name ? -1 : one.name > other.name ? 1 : 0;
  all.sort((one, other) => orders[order.value](one, other) || by(one, other));
  for (const one of all) {
    one.hidden = !(shows[show.value](one.dataset) && one.text.includes(wanted));
    shown += !one.hidden;
    main.append(one);
  }
  count.textContent = shown + " of " + all.length + " shown";
}
[show, order].forEach(one => one.addEventListener("change", update));
words.addEventListener("input", update);
document.getElementById("controls").addEventListener("submit", event => event.preventDefault());
update();
</script></body></html>
"""
