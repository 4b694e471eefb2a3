"""The tables of the front page: notebooks as a course, and reports.

What is in them is read from the repository: exercises, measured times, reports.toml.
`python -m tools.course` stores them anew in nbs/index.ipynb."""
import json
import re
from pathlib import Path

from IPython.display import Markdown
from tools.times import known

root = Path(__file__).resolve().parents[1]

# part -> what each of its notebooks answers; in reading order
COURSE = {
    'begin': {
        '00_core': 'How do mistakes name themselves, and why does a number need an interval?',
        '01_papers': 'What do the papers print, and how do our numbers stand beside theirs?',
        '02_identity': 'Which code is a result made from?',
        '03_saved': 'How are values kept without pickle?',
    },
    'video': {
        '10_video': 'How does a file become frames, and what if it is damaged?',
        '11_actions': 'How can clips be made whose motion alone tells the class?',
        '12_one_frame': 'Does a single frame give the class away?',
        '13_data': 'How do folders and lists become batches that a killed run can continue?',
        '14_datasets': 'How is a small part of a large dataset drawn and fetched?',
        '15_shards': 'How are videos read that no disk holds?',
        '16_images': 'How does a video model look at images?',
    },
    'the model': {
        '20_masks': 'What is seen, what must be guessed, and why in blocks?',
        '21_encoder': 'What does a vision transformer compute, and what of it is left out?',
        '22_predictor': 'How are hidden features guessed?',
        '23_objective': 'What is the loss, and why does it say nothing?',
        '24_train': 'How is it trained, and how does a run survive being killed?',
        '25_checkpoint': 'How is any published checkpoint opened?',
    },
    'evaluation': {
        '30_probe': 'What do frozen features know, and is a difference real?',
        '31_ensemble': 'When is a vote better than its members?',
        '32_infer': 'How is a folder of videos classified?',
        '33_view': 'What does an encoder see, and what surprises the model?',
        '34_widgets': 'What happens if one turns the knobs?',
    },
    'methods': {
        '40_nano': 'What is a video JEPA, from data to probe, on one page?',
        '41_pico': 'What does pico-JEPA do, as described and as published?',
        '42_vjepa': 'How do nano-JEPA and V-JEPA 2 differ from V-JEPA, field by field?',
        '43_recipe': 'Which recipe learns motion on a laptop, and what does each of its parts do?',
        '44_many': 'When do several small models beat a large one?',
        '45_nano_tables': 'What do the reports on nano-JEPA compute?',
        '46_ensemble_tables': 'What do the reports on ensembles compute?',
        '47_pico_tables': 'What do the reports on pico-JEPA compute?',
        '48_beyond_tables': 'What do the reports on the recipe and on many networks compute?',
    },
    'reports': {
        '49_freshness': 'Would a stored result come out the same today?',
        '50_report': 'How is a report made, and what does it leave?',
        '51_cli': 'What can be done from the command line?',
    },
    'words': {
        '90_glossary': 'What do the words mean?',
    },
}


def exercises(name) -> int:
    "How many exercises a notebook ends in"
    cells = json.loads((root/'nbs'/f'{name}.ipynb').read_text())['cells']
    texts = [''.join(c['source']).partition('## Exercises\n')[2] for c in cells if c['cell_type'] == 'markdown']
    return sum(len(re.findall(r'^\d+\. ', text, re.M)) for text in texts)


def course() -> Markdown:
    "Every notebook: what it answers, its exercises, and the seconds that it took"
    measured, lines = known(), ['| part | notebook | what it answers | exercises | seconds |', '|---|---|---|---|---|']
    for part, notebooks in COURSE.items():
        for i, (name, question) in enumerate(notebooks.items()):
            n = exercises(name)
            link, seconds = f'[{n}]({name}.ipynb#Exercises)' if n else '', measured.get(name, {}).get('seconds', '')
            first = '' if i else part
            lines.append(f'| {first} | [{name}]({name}.ipynb) | {question} | {link} | {seconds} |')
    return Markdown('\n'.join(lines))


def times() -> Markdown:
    "What the seconds of the table are"
    rows, n = list(known().values()), sum(map(len, COURSE.values()))
    slowest = max(rows, key=lambda row: float(row['seconds']))
    machines = sorted({f"{row['threads']} of {row['cores']} processor cores" for row in rows})
    which = 'All' if len(rows) == n else f'The {len(rows)} that were measured'
    minutes = sum(float(row['seconds']) for row in rows)/60
    when = 'on' if len(machines) == 1 else 'measured at different times, on'
    longest = f"the longest, {slowest['notebook']}, {slowest['seconds']} seconds"
    return Markdown(f'{which} take {minutes:.0f} minutes from top to bottom, {longest}; '
                    f'{when} {" or ".join(machines)}, by `python -m tools.times`.')


def reports() -> Markdown:
    "What every report makes"
    from jepa.report import catalogue
    lines = ['| report | makes | about |', '|---|---|---|']
    for name, spec in catalogue(root/'reports'/'reports.toml').items():
        makes = ', '.join(spec.makes)
        makes = makes if makes.startswith('beyond') else f'{spec.paper}, {makes}'
        lines.append(f'| [{name}](../reports/{spec.notebook}) | {makes} | {spec.title} |')
    return Markdown('\n'.join(lines))


FRONT = ('nano_fig1_pretraining', 'nano_tab2_videos', 'beyond_recipe', 'pico_tab2_accuracy')


def findings() -> Markdown:
    "What some reports found, in the standard tier: with the time behind each, and whether code has changed since"
    from jepa.report import made_in, report_states
    lines, states = [], {s.name: s for s in report_states('standard')}
    for name in FRONT:
        state = states[name]
        record, title = state.provenance, f'[{state.spec.title}](../reports/{state.spec.notebook})'
        if not record:
            lines.append(f'- **{title}** was not made here yet.')
            continue
        old = ' Made by an earlier version of the code.' if state.status == 'stale' else ''
        lines.append(f"- **{title}.** {record['finding']} *{made_in(record)}*{old}")
    return Markdown('\n'.join(lines))


def hours() -> Markdown:
    "How long all results of the standard tier took, with the runs behind them"
    from jepa._index import on_runs, span
    from jepa.report import report_states
    records = [s.provenance for s in report_states('standard') if s.provenance]
    seconds = span(sum(r.get('run_seconds', r['seconds']) for r in records))
    return Markdown(f'The {len(records)} results of the standard tier took {seconds}{on_runs(records)}.')


def tables() -> dict: # the cell's call -> its Markdown
    "What the cells of the front page show"
    return {f'{make.__name__}()': make().data for make in (findings, hours, course, times, reports)}


def store():
    "Bring the stored tables of the front page up to date; other cells stay as they are"
    import nbformat
    from jepa.core import write_beside
    file, found = root/'nbs'/'index.ipynb', tables()
    nb = nbformat.read(file, 4)
    for cell in nb.cells:
        for output in cell.get('outputs', []):
            if (call := cell.source.splitlines()[-1]) in found: output.data['text/markdown'] = found[call]
    with write_beside(file) as temporary: nbformat.write(nb, temporary)


if __name__ == '__main__': store()
