"Some pages of the site, built as `make docs` builds all of them, and read back."
import json
import os
import re
import shutil
import subprocess
import sys
from base64 import b64encode
from dataclasses import replace
from html import escape, unescape
from io import BytesIO
from pathlib import Path

import nbformat
import pytest
from PIL import Image

from memlab.lab.board import finding_of, in_two_digits, in_words
from memlab.lab.claims import read_claims, write_claims
from memlab.lab.rules import Equal, Less, deciding
from memlab.lab.study import find_study, study_names

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT/'tools'/'site'), str(ROOT/'tools')]
import build  # noqa: E402

WANTED = ['tutorials/layer', 'studies/mqar', 'nn/state', 'lab/explore', 'scoreboard']


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "A study with stored outputs, a library page and the API of their modules, in a tree where nothing was executed."
    place = tmp_path_factory.mktemp('site')
    done = subprocess.run([sys.executable, ROOT/'tools'/'site'/'build.py', *WANTED], env=os.environ | dict(MEMLAB_SITE=str(place)), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return place/'html'


def page(site, name): return (site/f'{name}.html').read_text(encoding='utf-8')


def stored_pictures(study):
    return sum('image/png' in out.get('data', {}) for cell in build.executed_study(study).cells if cell.cell_type == 'code' for out in cell.outputs)


def test_pages_are_built_with_what_was_stored(site):
    stored = stored_pictures('mqar')
    assert 0 < stored == len(re.findall('<img alt', page(site, 'studies/mqar'))) and 'verdict' in page(site, 'studies/mqar')
    assert (site/'api'/'memlab.nn.state.html').is_file() and not (site/'api'/'memlab.nn.delta.html').exists()


@pytest.mark.parametrize('name', ['index', *WANTED])
def test_no_page_runs_scripts_of_widgets(site, name):
    "They ask for a kernel that is not there, and end with an error in the console."
    text = page(site, name)
    assert not re.search(r'require(\.min)?\.js|embed(-amd)?\.js|application/vnd\.jupyter\.widget', text)


def test_controls_without_pictures_say_that_they_need_a_kernel(site):
    assert re.search('need a kernel|class="explorer"', page(site, 'studies/mqar'))
    cell = nbformat.v4.new_code_cell('explorer(draw, pairs=[1, 2])')
    assert build.code(cell, ROOT/'nbs'/'studies'/'mqar.ipynb') and 'need a kernel' in cell.outputs[0].data['text/markdown']
    widget = nbformat.v4.new_output('display_data', {build.WIDGET: dict(model_id='x'), 'text/plain': 'VBox()'})
    assert 'need a kernel' in build.prepared(widget, ROOT/'nbs'/'studies'/'mqar.ipynb').data['text/markdown']


def picture():
    "A picture as a notebook holds it."
    out = BytesIO()
    Image.new('RGB', (4, 3), 'red').save(out, 'PNG')
    return b64encode(out.getvalue()).decode()


def test_an_explorer_becomes_pictures_with_words(site, tmp_path, monkeypatch):
    monkeypatch.setattr(build, 'SOURCE', tmp_path)
    frames = [dict(values=dict(n=1, how='<a>'), png='', said='no picture of this'), dict(values=dict(n=2, how='<a>'), png=picture(), said='')]
    put_out = [nbformat.v4.new_output('display_data', {build.FRAMES: dict(about='What is held, as PNG bytes.', controls=['n', 'how'], frames=frames, whole=False)}),
               nbformat.v4.new_output('execute_result', {build.WIDGET: dict(model_id='x')})]
    cell = nbformat.v4.new_code_cell('explorer(draw, n=[1, 2])', id='c7', outputs=put_out)
    assert build.code(cell, ROOT/'nbs'/'studies'/'mqar.ipynb') and len(cell.outputs) == 1
    html = cell.outputs[0].data['text/html']
    drawn = json.loads(unescape(re.search('data-drawn="(.*?)"', html)[1]))
    assert [frame.get('src') for frame in drawn['frames']] == [None, '../frames/mqar/c7-1.png'] and drawn['frames'][0]['values'] == dict(n=1, how='<a>')
    assert '<img src="../frames/mqar/c7-1.png" alt="What is held.">' in html and 'One control moves at a time' in html
    assert Image.open(tmp_path/'frames'/'mqar'/'c7-1.png').size == (4, 3)
    assert 'explorer.js' in page(site, 'studies/mqar') and 'http' not in (site/'_static'/'explorer.js').read_text()


def test_the_scoreboard_has_every_claim_of_every_study(site):
    ids = [c['id'] for f in (ROOT/'data'/'results').glob('*/*/claims.json') for c in read_claims(f)]
    text = page(site, 'scoreboard')
    assert len(ids) > 100 and sorted(re.findall(r'<tr[^>]*><td><p>(\w+)</p></td>', text)) == sorted(ids)
    for name in study_names(): assert f'{escape(find_study(name).question)}<' in text, name


def test_nothing_in_the_navigation_is_flat(site):
    tree = re.search(r'<div class="sidebar-tree">.*?</div>\s*</div>', page(site, 'index'), re.S)[0]
    assert re.findall(r'class="caption-text">(.*?)<', tree) == ['Start', 'Tutorials', 'Studies', 'Reference']
    assert [len(re.findall(f'toctree-l{i}', tree)) for i in (1, 2, 3)] == [6, 11, 3]      # scoreboard, tutorial, study, nn, lab, API; their pages, six of them of claims, and its three packages; of each a module
    assert build.first_words(ROOT/'nbs'/'nn'/'state.ipynb')[0] == 'State' and 'State: A memory is a value' in re.sub('<.*?>', '', page(site, 'library/nn'))
    assert 'memlab.nn.state.html' in page(site, 'reference/nn')


def test_studies_and_tutorials_have_the_order_of_the_front_page():
    ways = re.search(r'^- \*\*Tutorials.*\n- \*\*Studies.*', (ROOT/'README.md').read_text(encoding='utf-8'), re.M)[0]
    assert [path.relative_to(ROOT).as_posix() for folder in ('tutorials', 'studies') for path in build.pages(folder)] == re.findall(r'\]\((.*?)\)', ways)
    assert sorted(path.stem for path in build.pages('studies')) == study_names()


def test_a_study_without_records_stops_the_build_unless_its_page_says_so(tmp_path, monkeypatch):
    says = nbformat.v4.new_output('display_data', {'text/markdown': 'Nothing was computed yet.'})
    shown = nbformat.v4.new_output('display_data', {'text/markdown': 'A figure.'})
    outputs = dict(planned=[says], new=[], lost=[shown], mqar=[shown])
    monkeypatch.setattr(build, 'executed_study', lambda name: nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell('box(study)', outputs=outputs[name])]))
    assert build.without_records(['mqar', 'planned', 'new']) == []
    assert build.without_records(['mqar', 'lost']) == ['lost: there are no records of it in data/results, and its page does not say that there are no records yet']


def test_a_claim_without_its_finding_stops_the_build(tmp_path, monkeypatch):
    assert build.without_finding(study_names()) == []
    study = find_study('mqar')
    rows = [c | dict(verdict='refuted', effect=.1, ci_low=0., ci_high=.2) if c['id'] == 'MQ5c' else c for c in read_claims(study.results('cpu')/'claims.json')]
    write_claims(tmp_path/'data'/'results'/'mqar'/'cpu'/'claims.json', rows)
    monkeypatch.setattr(build, 'ROOT', tmp_path)
    assert build.without_finding(['mqar']) == []
    monkeypatch.setattr(study, 'claims', [replace(c, findings={}) if c.id == 'MQ5c' else c for c in study.claims])
    assert build.without_finding(['mqar']) == ['mqar, cpu: MQ5c reads refuted and has no finding for that: give it one with `study.finds`']
    monkeypatch.setattr(study, 'claims', [replace(c, findings={}) for c in study.claims])
    assert build.without_finding(['mqar']) == []


@pytest.mark.parametrize('name', study_names())
def test_an_open_number_says_which_side_speaks_for_its_claim(name):
    row = dict(verdict='inconclusive', effect=-.02, ci_low=-.03, ci_high=.01, unit='nats')
    for claim in find_study(name).claims:
        if 'inconclusive' in claim.findings: continue
        rule, said = deciding(claim.rule), finding_of(claim, row)[0]
        way = 'below' if isinstance(rule, Less) else 'within' if isinstance(rule, Equal) else 'above'
        bar = rule.most if way == 'below' else rule.margin if way == 'within' else rule.least
        assert re.search(rf'\({re.escape(in_two_digits(row))}; {way} {re.escape(f"{bar:.3g}")}( of -?[\d.]+)? speaks for it\)\.$', said), said


def claim_pages(site): return {f.stem: f.read_text(encoding='utf-8') for f in sorted((site/'claims'/'mqar').glob('*.html'))}


def test_each_claim_has_its_place_on_the_page_of_its_section(site):
    rows, pages = read_claims(ROOT/'data'/'results'/'mqar'/'cpu'/'claims.json'), claim_pages(site)
    parts = {title: text for page in pages.values() for title, text in re.findall(r'<h2>(\w+)<.*?</h2>(.*?)</section>', page, re.S)}
    assert len(pages) == 6 and sorted(parts) == sorted(r['id'] for r in rows)
    plain = lambda html: ' '.join(unescape(re.sub('<.*?>', ' ', html)).split())
    for row in rows:
        said = plain(parts[row['id']])
        for key in ('statement', 'verdict', 'measured', 'rule', 'source'): assert row[key] in said, (row['id'], key)
    row, said = next((r, plain(parts[r['id']])) for r in rows if r['id'] == 'MQ5b')
    words = (*finding_of(next(c for c in find_study('mqar').claims if c.id == 'MQ5b'), row), in_words(row), 'smallest effect that matters', 'seeds')
    assert all(word in said for word in words), words


def test_a_page_of_claims_leads_to_its_section_to_its_figure_and_to_the_log(site):
    for name, text in claim_pages(site).items():
        html, study = build.Page(text), build.Page(page(site, 'studies/mqar'))
        places = [link.partition('#')[2] for link in html.links if link.startswith('../../studies/mqar.html#')]
        assert name in places and 'verdicts' in places and set(places) <= set(study.ids), places
        assert bool(html.pictures) == (not name.startswith('what-waits')) and all(len(words) > 15 for _, words in html.pictures) and 'def ' not in text
        assert f'../claims/mqar/{name}.html' in study.links and re.search('class="(next|prev)-page" href="[a-z-]*.html"', text)
    assert '"mq4a"' in (site/'searchindex.js').read_text().lower() and '/edit/' not in text


def test_a_claim_in_no_section_stops_the_build(monkeypatch):
    assert build.without_group(study_names()) == []
    table = lambda *ids: nbformat.v4.new_code_cell('brief()', outputs=[nbformat.v4.new_output('display_data', {'text/html': ''.join(f'<td>{i}</td>' for i in ids)})])
    heading = nbformat.v4.new_markdown_cell
    nb = nbformat.v4.new_notebook(cells=[heading('## 1. A?'), table('AB1a', 'AB2'), heading('Words.'), heading('## 2. B?'), table('AB2', 'AB3'), heading('## Appendix'), heading('### What waits'), table('AB1a', 'AB5'), heading('### Verdicts'), table('AB4')])
    assert build.groups(nb, ['AB1a', 'AB1b', 'AB2', 'AB3', 'AB5']) == {'1. A?': ['AB1a', 'AB1b', 'AB2'], '2. B?': ['AB3'], 'What waits': ['AB5']}   # AB1b is another part of AB1
    monkeypatch.setattr(build, 'executed_study', lambda name: nb)
    monkeypatch.setattr(build, 'claims_of', lambda name: ['AB1b', 'AB3', 'AB4'] if name == 'ab' else [])
    assert build.without_group(['ab', 'new']) == ['ab: no section of its page has AB4 in a table: name it in a `brief`']


def test_a_word_is_no_name_on_pages_that_do_not_define_it():
    studies, identity = ROOT/'nbs'/'studies'/'new.ipynb', ROOT/'nbs'/'core'/'identity.ipynb'
    for word in ('quick', 'cpu', 'gpu', 'full', 'train', 'compare'): assert build.prose(f'at `{word}` there', studies) == f'at `{word}` there'
    assert '<memlab.core.identity.full>' in build.prose('`full`', identity)
    assert '<memlab.nn.delta.DeltaNetConfig>' in build.prose('`DeltaNetConfig`', studies) and '<memlab.train.loop.fit_model>' in build.prose('`fit_model`', studies)


def test_a_displayed_equation_stands_apart():
    path = ROOT/'nbs'/'nn'/'state.ipynb'
    assert build.prose('where $m$ is\n$$a\n= b$$\nand $c$ not.', path) == 'where $m$ is\n\n$$a\n= b$$\n\nand $c$ not.'
    assert build.prose('```\n$$a$$\n```\nand $c$ not.', path) == '```\n$$a$$\n```\nand $c$ not.'


def test_links_that_the_front_page_puts_out_lead_to_pages_of_the_site():
    "They are written for README.md, from the root of the tree; on the site the notebooks stand one folder higher."
    put_out = re.findall(r'\]\((nbs/[^)]+)\)', build.shown((ROOT/'README.md').read_text(encoding='utf-8'), build.INDEX))
    assert not put_out and build.shown('[RG1a](nbs/studies/residual_growth.ipynb)', build.INDEX) == '[RG1a](./studies/residual_growth.ipynb)'
    assert build.shown('[RG1a](nbs/studies/nowhere.ipynb)', build.INDEX) == 'RG1a'
    assert build.shown('![streams](figures/mqar/cpu/mq2.svg)', ROOT/'nbs'/'studies'/'mqar.ipynb') == '![streams](../figures/mqar/cpu/mq2.svg)'


def test_every_picture_is_described(site):
    words = re.findall(r'<img alt="([^"]*)"', page(site, 'studies/mqar'))
    assert len(words) == stored_pictures('mqar') and all(len(w) > 15 and '_images' not in w for w in words)
    assert build.picture_in_words("finish(fig, 'mq3', f'Accuracy of {n} models.')", 'Prose.') == 'Accuracy of … models.'
    assert build.picture_in_words('ax.plot()', '') == ''                                        # which stops the build
    assert build.picture_in_words('ax.plot()', '## Title\n\nWhat a `State` holds, [by layer](x.ipynb). More.') == 'What a State holds, by layer.'


def test_cells_of_tables_know_their_column(site):
    table = re.search(r'<table[^>]*>(?:(?!</table>).)*<th>statement</th>.*?</table>', page(site, 'studies/mqar'), re.S)[0]
    head, _, rows = table.partition('</thead>')
    wanted = [re.sub('<.*?>', '', cell) for cell in re.findall('<th[ >].*?</th>', head, re.S)]
    assert {'claim', 'statement', 'verdict'} <= set(wanted) and [re.findall(r'data-label="(.*?)"', row) for row in re.findall(r'<tr>.*?</tr>', rows, re.S)[:2]] == [wanted] * 2
    indexed = '<table><thead><tr><th></th><th>a</th></tr></thead><tbody><tr><th>0</th><td>1</td></tr></tbody></table>'
    assert build.labelled(indexed) == indexed.replace('<td>', '<td data-label="a">')
    assert 'max-width' in (site/'_static'/'narrow.css').read_text() and 'narrow.css' in page(site, 'studies/mqar')


def test_names_of_the_package_have_a_place_on_the_page_of_their_notebook(site):
    "`_modidx` promises nn/state.html#state.cat and the like."
    ids = set(re.findall(r'\bid="([^"]+)"', page(site, 'nn/state')))
    promised = {where.partition('#')[2] for where, _ in build.syms['memlab.nn.state'].values()}
    assert promised and promised <= ids


def test_view_and_edit_lead_to_the_notebook_or_are_not_there(site):
    assert '/edit/main/nbs/nn/state.ipynb' in page(site, 'nn/state')
    assert '/edit/' not in page(site, 'api/memlab.nn.state') and '/blob/main/nbs/api' not in page(site, 'api/memlab.nn.state')


@pytest.mark.parametrize('ci, code', [('', 0), ('true', 2)])
def test_without_node_the_browser_is_left_out_aloud(ci, code):
    done = subprocess.run([shutil.which('make'), '-C', ROOT, 'site-test'], env=dict(PATH='/nowhere', CI=ci), capture_output=True, text=True)
    assert (done.returncode, 'site-test is skipped: no node' in done.stdout) == (code, True), done.stderr


def test_what_a_reader_would_stumble_over_is_a_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(build, 'OUT', tmp_path)
    monkeypatch.setattr(build, 'syms', {'memlab.a': {'memlab.a.f': ('a.html#f', 'memlab/a.py')}})
    (tmp_path/'a.html').write_text('<p id="f"></p><a href="b.html#there">x</a><a href="https://x.org">y</a><img src="p.png" alt="A picture.">')
    (tmp_path/'b.html').write_text('<p id="there"></p><a href="a.html">back</a>')
    assert build.faults(True) == []
    (tmp_path/'big.js').write_text('x' * 999_950)
    (tmp_path/'index.html').write_text('<script src="big.js?v=1"></script><img src="big.js" alt="Once."><p>A home page of some words, and more</p>')
    total = 999_950 + (tmp_path/'index.html').stat().st_size
    assert build.faults(True) == [f'index.html: weighs {total:,} bytes with all it shows, 1,000,000 at most']
    (tmp_path/'index.html').unlink()
    (tmp_path/'b.html').write_text('<p id="here"></p><p id="here"></p><a href="c.html">x</a><img src="p.png" alt="p.png"><script src="https://x.org/y.js"></script>')
    told = build.faults(True)
    assert [sum(word in line for line in told) for word in ('two places', 'no words', 'elsewhere', 'leads nowhere')] == [1, 1, 1, 2], told
    monkeypatch.setattr(build, 'syms', {'memlab.a': {'memlab.a.g': ('a.html#g', 'memlab/a.py')}})
    assert any('a.html#g, which is not there' in line for line in build.faults(True))
