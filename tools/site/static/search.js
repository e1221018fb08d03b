// What a search says of a page: the line of its prose or of a table that has most of the words; never code.
// Methods and attributes come last: a class has many, and claims would stand below them all.
Scorer.score = ([page, title, anchor, kind, score]) => /^Python (method|attribute|property)/.test(kind ?? "") ? score - 10 : score;

const PROSE = "p, dd, td, li", LEFT_OUT = ".headerlink, script, style, .highlight, .cell_input, .cell_output pre, .math, dt";

Search.makeSearchSummary = (text, words, anchor) => {
  const page = new DOMParser().parseFromString(text, "text/html").querySelector('[role="main"]');
  const part = (anchor && page.querySelector(anchor)) || page;
  for (const e of part.querySelectorAll(LEFT_OUT)) e.replaceWith(e.matches(".math") ? "…" : "");
  const lines = [...part.querySelectorAll(PROSE)].filter(e => !e.querySelector(PROSE)).map(e => e.textContent.trim().replace(/\s+/g, " "));
  const hits = line => [...words].filter(word => line.toLowerCase().includes(word)).length + (line.length > 40);
  const best = lines.reduce((a, b) => hits(b) > hits(a) ? b : a, lines[0] ?? "");
  const first = Math.min(...[...words].map(word => best.toLowerCase().indexOf(word)).filter(at => at >= 0), best.length);
  const start = first < 160 ? 0 : best.lastIndexOf(" ", first - 80) + 1;
  const summary = document.createElement("p");
  summary.className = "context";
  summary.textContent = (start ? "… " : "") + best.slice(start, start + 240) + (best.length > start + 240 ? " …" : "");
  return summary;
};
