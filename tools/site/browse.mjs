// Reads the built site in headless Chromium as a person would, and says what is wrong, a line a fault.
//
// usage: node tools/site/browse.mjs [FOLDER] [PAGE ...]   the site in FOLDER (build/html), or these pages of it, such as studies/mqar
//        node tools/site/browse.mjs --lab STUDY           a study in JupyterLab: run all at preset quick, move its explorer, save
//
// Chromium is found on the PATH, or where CHROMIUM says; npm brings playwright-core into .cache/browser.
// Where either is missing the test is skipped with a message; where CI is set that is a failure.
import {execFileSync, spawn} from "node:child_process";
import {createReadStream, existsSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, statSync} from "node:fs";
import {createServer} from "node:http";
import {createRequire} from "node:module";
import {tmpdir} from "node:os";
import {delimiter, dirname, extname, join, resolve} from "node:path";
import {fileURLToPath} from "node:url";

const ROOT = resolve(dirname(fileURLToPath(import.meta.url)), "../.."), TOOLS = join(ROOT, ".cache/browser");
const PLAYWRIGHT = "playwright-core@1.65.1", WIDTHS = [400, 1280], SCHEMES = ["light", "dark"];

function skip(why) {
  console.log(`site-test is skipped: ${why}`);
  process.exit(process.env.CI ? 1 : 0);
}

const onPath = name => process.env.PATH.split(delimiter).map(folder => join(folder, name)).find(existsSync);

function browser() {
  const names = ["chromium", "chromium-browser", "google-chrome"];
  return process.env.CHROMIUM ?? names.map(onPath).find(Boolean) ?? skip(`no browser: install one of ${names.join(", ")}, or name one in CHROMIUM`);
}

function playwright() {
  const require = createRequire(join(TOOLS, "x.js"));
  try { return require("playwright-core"); } catch {}
  mkdirSync(TOOLS, {recursive: true});
  try { execFileSync("npm", ["install", "--silent", "--no-audit", "--no-fund", "--prefix", TOOLS, PLAYWRIGHT], {stdio: "inherit"}); }
  catch { skip(`npm could not fetch ${PLAYWRIGHT}`); }
  return require("playwright-core");
}

const KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml", ".png": "image/png"};
const isFile = path => existsSync(path) && statSync(path).isFile();

function serve(folder) {
  const server = createServer((request, response) => {
    const path = join(folder, decodeURIComponent(new URL(request.url, "http://x").pathname));
    const kind = KINDS[extname(path)] ?? "application/octet-stream";
    response.writeHead(isFile(path) ? 200 : 404, {"content-type": kind, "cache-control": "max-age=600"});
    if (isFile(path)) createReadStream(path).pipe(response);
    else response.end();
  });
  return listening(server);
}

const listening = server => new Promise(done => server.listen(0, "127.0.0.1", () => done(`http://127.0.0.1:${server.address().port}/`)));

// No other host is found, so that what a page would fetch from elsewhere is missing, as it is for a reader without a network.
const ALONE = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"];
const launch = () => playwright().chromium.launch({executablePath: browser(), args: ALONE});

function htmlFiles(folder, under = "") {
  return readdirSync(join(folder, under), {withFileTypes: true}).flatMap(entry => {
    const name = under + entry.name;
    return entry.isDirectory() ? htmlFiles(folder, `${name}/`) : name.endsWith(".html") ? [name] : [];
  });
}

// -- what is asked inside a page --------------------------------------------------------------------------------------

const linksAndPlaces = () => ({
  links: [...document.querySelectorAll("a[href]")].map(a => a.href),
  places: [...document.querySelectorAll("[id]")].map(e => e.id),
  explorers: document.querySelectorAll(".explorer").length,
});

const pictures = () => [...document.querySelectorAll("img")].flatMap(i => [
  ...i.complete && !i.naturalWidth ? [`picture ${i.src} does not load`] : [],
  ...i.alt.trim() ? [] : [`picture ${i.src} has no alt text`],
]);

const formulas = async () => {
  const all = [...document.querySelectorAll(".math")];
  if (all.length) await window.MathJax?.startup?.promise;
  const bad = all.filter(f => !f.querySelector("mjx-container") || f.querySelector("mjx-merror"));
  return bad.map(f => `formula is not set: ${f.textContent.trim().slice(0, 60)}`);
};

const tooWide = () => {
  // On a phone the theme lets the column scroll, on a desk what is too wide lies on the contents beside it.
  const column = document.querySelector(".content") ?? document.body, whole = [document.documentElement, column];
  const over = Math.max(...whole.map(e => e.scrollWidth - e.clientWidth)), edge = column.getBoundingClientRect().right;
  if (over <= 0) return [];
  const scrolls = look => look.overflowX != "visible" || look.position == "fixed";
  const clipped = e => e && !whole.includes(e) && (scrolls(getComputedStyle(e)) || clipped(e.parentElement));
  const beyond = [...column.querySelectorAll("*")].filter(e => e.getBoundingClientRect().right > edge + 1 && !clipped(e.parentElement));
  const e = beyond.at(-1);
  return [`${over} px too wide${e ? `: ${e.tagName.toLowerCase()} ${e.textContent.trim().slice(0, 50)}` : ""}`];
};

const faint = () => {
  const rgba = colour => { const [r, g, b, a = 1] = colour.match(/[\d.]+/g).map(Number); return {rgb: [r, g, b], a}; };
  const ground = e => {
    const c = rgba(e ? getComputedStyle(e).backgroundColor : "rgb(255,255,255)");
    return c.a > .5 ? c : ground(e.parentElement);
  };
  const linear = v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = ({rgb: [r, g, b]}) => .2126 * linear(r) + .7152 * linear(g) + .0722 * linear(b);
  const seen = new Map();
  for (const e of document.querySelectorAll("article *")) {
    const words = [...e.childNodes].filter(n => n.nodeType == 3).map(n => n.data.trim()).join("");
    if (!words || !e.checkVisibility({checkOpacity: true, checkVisibilityCSS: true}) || e.closest("svg, .headerlink")) continue;
    const [front, back] = [rgba(getComputedStyle(e).color), ground(e)];
    const [low, high] = [light(front), light(back)].sort((a, b) => a - b), contrast = (high + .05) / (low + .05);
    const fault = `contrast ${contrast.toFixed(1)} in ${e.tagName.toLowerCase()} ${words.slice(0, 40)}`;
    if (contrast < 4.5) seen.set(JSON.stringify([front, back]), fault);
  }
  return [...seen.values()];
};

// -- the site ---------------------------------------------------------------------------------------------------------

async function open(context, at, faults) {
  const page = await context.newPage(), short = url => url.replace(at, "").replace(/[?#].*/, "");
  const tell = fault => faults.add(`${short(page.url())}: ${fault}`);
  page.setDefaultTimeout(120_000);
  page.on("console", message => message.type() == "error" && tell(`console: ${message.text()}`));
  page.on("pageerror", error => tell(`error: ${error.message}`));
  const ours = url => /^(data|blob|ws):/.test(url) || url.startsWith(at);
  page.on("request", request => ours(request.url()) || tell(`asks for ${request.url()}, which is not in the folder`));
  page.on("response", response => response.ok() || tell(`asks for ${short(response.url())}, which is not there`));
  return page;
}

async function read(page, at, name, known, faults) {
  await page.setViewportSize({width: WIDTHS[0], height: 900});
  await page.goto(at + name);
  const tell = (found, where = "") => found.forEach(fault => faults.add(`${name}${where}: ${fault}`));
  tell(await page.evaluate(formulas));
  for (const width of WIDTHS) {
    await page.setViewportSize({width, height: 900});
    tell(await page.evaluate(tooWide), ` at ${width} px`);
  }
  for (const colorScheme of SCHEMES) {
    await page.emulateMedia({colorScheme});
    tell(await page.evaluate(faint), `, ${colorScheme}`);
  }
  tell(await page.evaluate(pictures));
  tell(await moveSliders(page));
  known.set(name, await page.evaluate(linksAndPlaces));
}

function deadLinks(folder, at, known) {
  const out = [];
  for (const [name, {links}] of known) for (const link of new Set(links)) {
    if (!link.startsWith(at)) continue;
    const url = new URL(link), path = decodeURIComponent(url.pathname).slice(1), place = decodeURIComponent(url.hash).slice(1);
    const dead = !isFile(join(folder, path)) || (place && known.has(path) && !known.get(path).places.includes(place));
    if (dead) out.push(`${name}: link to ${link.replace(at, "")}, which is not there`);
  }
  return out;
}

async function results(page, at, words) {
  await page.goto(`${at}search.html?q=${encodeURIComponent(words)}`);
  await page.waitForFunction(() => /finished|did not match/.test(document.querySelector("#search-results")?.innerText ?? ""));
  await page.waitForFunction(() => [...document.querySelectorAll("ul.search > li.kind-text")].every(row => row.querySelector(".context")));
  const rows = await page.$$eval("ul.search > li", all => all.map(e => [e.querySelector("a").href, e.querySelector(".context")?.innerText ?? ""]));
  return rows.map(([to, said]) => ({to: to.replace(at, ""), said}));
}

async function search(page, at, words) {
  const found = await results(page, at, words), wanted = words.toLowerCase().split(" ");
  const claim = found.some(({to, said}) => /^(studies\/|claims\/|scoreboard)/.test(to) && wanted.every(word => said.toLowerCase().includes(word)));
  const code = found.filter(({said}) => /^\s*(import|from|def|class|return|assert) |\w\(\w+=|\w = \w+[.(]/.test(said));
  return [
    ...claim ? [] : [`finds no claim with these words`],
    ...found.some(({to}) => /^api\/.*#memlab\./.test(to)) ? [] : [`finds no function`],
    ...code.map(({to, said}) => `quotes code of ${to}: ${said.slice(0, 60)}`),
  ].map(fault => `search for "${words}" ${fault}`);
}

async function readClaims(page, at, name) {
  await page.goto(at + name);
  const id = await page.$eval("article h2", e => e.firstChild.data.trim()), study = name.split("/")[1];
  const ways = await page.$$eval("article a[href*='#']", all => all.map(a => a.href)), around = await page.locator(".related-pages a").count();
  const known = await page.$$eval("article h2 ~ .table-wrapper, article h2 ~ table", all => all[0]?.innerText ?? "");
  const found = await results(page, at, id);
  return [
    ...ways.some(way => way.startsWith(`${at}studies/${study}.html#`)) ? [] : ["leads to no section of its study"],
    ...around ? [] : ["leads to no page before or after it"],
    ...["verdict", "measured", "rule", "source"].filter(word => !known.includes(word)).map(word => `does not say the ${word} of ${id}`),
    ...found.some(({to}) => to.startsWith(name)) ? [] : [`is not found by a search for "${id}"`],
  ].map(fault => `${name}: ${fault}`);
}

async function moveSliders(page) {
  const out = [];
  for (const box of await page.locator(".explorer").all()) {
    const knob = box.locator("input[type=range], select").first(), image = box.locator("img");
    if (!await knob.count()) { out.push("an explorer has no controls"); continue; }
    const state = async () => [await image.getAttribute("src"), await image.getAttribute("alt")];
    const before = await state();
    await knob.focus();
    for (const key of ["ArrowRight", "ArrowLeft", "ArrowDown"]) if (String(await state()) == String(before)) await page.keyboard.press(key);
    const [src, alt] = await state(), shown = await image.evaluate(i => i.decode().then(() => true, () => false));
    if (src == before[0] || alt == before[1]) out.push(`an explorer's picture and its words stay when keys move its first control`);
    else if (!shown) out.push(`an explorer's picture ${src} does not load`);
  }
  return out;
}

async function site(folder, wanted) {
  if (!isFile(join(folder, "index.html"))) return [new Set(["it holds no index.html: run `make docs` first"]), folder];
  const names = wanted.length ? wanted.map(name => `${name}.html`) : htmlFiles(folder), waiting = [...names];
  const chromium = await launch(), at = await serve(folder), context = await chromium.newContext(), faults = new Set(), known = new Map();
  const reader = async () => {
    const page = await open(context, at, faults);
    for (let name; (name = waiting.shift());) await read(page, at, name, known, faults).catch(error => faults.add(`${name}: ${error.message}`));
    return page;
  };
  const [page] = await Promise.all([reader(), reader()]);
  if (!wanted.length) deadLinks(folder, at, known).forEach(fault => faults.add(fault));
  (await search(page, at, "delta rule").catch(error => [`the search fails: ${error.message}`])).forEach(fault => faults.add(fault));
  const claims = names.filter(name => name.startsWith("claims/"));
  if (claims.length) (await readClaims(page, at, claims[0]).catch(error => [`${claims[0]}: ${error.message}`])).forEach(fault => faults.add(fault));
  else if (!wanted.length) faults.add("no page has the claims of a section");
  if (!wanted.length && ![...known.values()].some(({explorers}) => explorers)) faults.add("no page has an explorer: were the studies executed?");
  await chromium.close();
  return [faults, `${names.length} pages, at ${WIDTHS.join(" and ")} px, ${SCHEMES.join(" and ")}`];
}

// -- JupyterLab -------------------------------------------------------------------------------------------------------

async function startLab() {
  const own = join(ROOT, ".venv/bin/jupyter"), settings = mkdtempSync(join(tmpdir(), "lab-")), free = createServer();
  const at = await listening(free), port = free.address().port;
  await new Promise(done => free.close(done));
  const server = [`--ServerApp.port=${port}`, "--ServerApp.port_retries=0", `--ServerApp.root_dir=${ROOT}`, "--IdentityProvider.token=t"];
  const jupyter = existsSync(own) ? own : onPath("jupyter") ?? skip("no jupyter: run `make setup`");
  const env = {...process.env, JUPYTER_CONFIG_DIR: settings};
  const running = spawn(jupyter, ["lab", "--no-browser", "--allow-root", ...server], {cwd: ROOT, stdio: "ignore", env});
  const answers = () => fetch(`${at}api`).then(() => true, () => false);
  while (!await answers()) {
    if (running.exitCode !== null) throw new Error(`jupyter lab ended with ${running.exitCode}`);
    await new Promise(done => setTimeout(done, 500));
  }
  const stop = () => new Promise(done => { running.on("exit", done); running.kill(); }).then(() => rmSync(settings, {recursive: true}));
  return [at, stop];
}

const cellsThatFailed = () => [...document.querySelectorAll(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error']")]
  .map(e => `a cell fails: ${e.innerText.trim().split("\n").at(-1)}`);
const ended = () => {
  const prompts = [...document.querySelectorAll(".jp-Notebook .jp-CodeCell .jp-InputPrompt")].map(e => e.innerText);
  const failed = document.querySelector(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error']");
  return failed || (prompts.length && prompts.every(text => /\[\d+\]/.test(text)));
};

async function lab(study) {
  const file = join(ROOT, `nbs/studies/${study}.ipynb`), before = readFileSync(file), faults = new Set();
  const chromium = await launch(), [at, stop] = await startLab();
  try {
    const page = await open(await chromium.newContext({viewport: {width: 1280, height: 900}}), at, faults);
    await page.goto(`${at}lab/tree/nbs/studies/${study}.ipynb?token=t&reset`);
    await page.waitForSelector(".jp-Notebook .jp-CodeCell");
    await page.waitForFunction(() => /\| Idle/.test(document.querySelector("#jp-bottom-panel, #jp-main-statusbar")?.innerText ?? ""));
    await page.getByRole("menuitem", {name: "Run", exact: true}).click();
    await page.getByText("Run All Cells", {exact: true}).click();
    await page.waitForFunction(ended, null, {timeout: 1_200_000});
    (await page.evaluate(cellsThatFailed)).forEach(fault => faults.add(fault));
    const slider = page.locator(".jp-OutputArea .noUi-handle").first(), picture = page.locator(".jp-OutputArea img.widget-image").first();
    const src = await picture.getAttribute("src");
    await slider.focus();
    await page.keyboard.press("ArrowRight");
    await page.waitForFunction(([image, was]) => image.src != was, [await picture.elementHandle(), src], {timeout: 60_000})
      .catch(() => faults.add("the explorer's picture stays when its slider is moved"));
    await page.keyboard.press("Control+s");
    await page.waitForTimeout(5000);
    if (!before.equals(readFileSync(file))) faults.add("saving after a run changes the notebook's file");
  } catch (error) {
    faults.add(error.message);
  } finally {
    await chromium.close();
    await stop();
  }
  return [faults, `${study}, run in JupyterLab`];
}

const [first = join(ROOT, "build/html"), ...others] = process.argv.slice(2);
const [faults, where] = first == "--lab" ? await lab(others[0]) : await site(resolve(first), others);
for (const fault of faults) console.log(fault);
console.log(`${faults.size || "no"} fault${faults.size == 1 || !faults.size ? "" : "s"} in ${where}`);
process.exit(faults.size ? 1 : 0);
