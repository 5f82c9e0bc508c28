"""The style sheet of the pages, for light and dark screens."""

STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #657184; --paper: #f5f6f8; --card: #fff; --rule: #dfe3e9; --blue: #2f6fb7;
  --red: #cc3b3b; --amber: #b36b00; --good: #1c7c4a; --band0: #2f6fb714; --band1: #2f6fb72b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #97a3b6; --paper: #12161c; --card: #1b2129; --rule: #313a46;
  --blue: #74aef0; --red: #ff7b7b; --amber: #f0b45a; --good: #5fce95; --band0: #74aef012; --band1: #74aef02a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 28px 20px 60px; }
header p { margin: 0; color: var(--soft); }
h1 { margin: 0 0 16px; font-size: 30px; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 0 0 12px; font-size: 19px; }
h3 { margin: 18px 0 6px; font-size: 15px; }
small, figcaption { color: var(--soft); font-size: 13px; }
code { font-size: 13px; overflow-wrap: anywhere; }
section, .tiles > div { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; }
section { margin-top: 18px; padding: 18px 20px; }
section > p { margin: 0 0 8px; }
.verdict { margin: 0 0 18px; padding: 12px 16px; border-left: 4px solid var(--soft); background: var(--card); border-radius: 6px; }
.verdict.good { border-color: var(--good); } .verdict.bad { border-color: var(--red); }
.verdict.good b { color: var(--good); } .verdict.bad b { color: var(--red); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 0; }
.tiles > div { padding: 12px 16px; }
dt { color: var(--soft); font-size: 13px; }
dd { margin: 0; font-size: 25px; font-weight: 600; line-height: 1.3; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(280px, 1fr)); gap: 20px; align-items: start; }
figure { margin: 0; }
.charts figcaption b { display: block; color: var(--ink); font-size: 15px; }
svg { display: block; width: 100%; height: auto; }
.bar { fill: var(--blue); }
.axis { stroke: var(--rule); stroke-width: 1; }
.line { fill: none; stroke: var(--blue); stroke-width: 1.8; stroke-linejoin: round; }
.grip { stroke: var(--amber); }
.band0 { fill: var(--band0); } .band1 { fill: var(--band1); }
.end { stroke: var(--red); stroke-width: 1.6; }
svg text { fill: var(--soft); font-size: 12px; }
svg .number { font-weight: 600; fill: var(--ink); }
svg .endlabel { fill: var(--red); font-weight: 600; }
.legend { color: var(--soft); font-size: 13px; }
.legend span { margin-right: 20px; }
.legend span::before { content: ""; display: inline-block; width: 18px; margin: 0 6px 4px 0; border-top: 2px solid; }
.legend .speed::before { color: var(--blue); }
.legend .command::before { color: var(--amber); }
.legend .last::before { color: var(--red); }
.strips { display: grid; gap: 14px; margin-top: 6px; }
.strip p { margin: 0 0 4px; }
.pictures { display: grid; grid-template-columns: repeat(5, minmax(0, 1fr)); gap: 6px; }
.pictures figure { padding: 3px; border: 2px solid transparent; border-radius: 6px; }
.pictures figure div { display: flex; gap: 2px; align-items: flex-start; }
.pictures figcaption { text-align: center; }
.pictures img { flex: 1; min-width: 0; border-radius: 3px; }
.pictures .last { border-color: var(--red); }
.pictures .last figcaption { color: var(--red); font-weight: 600; }
.pictures .absent { border: 2px dashed var(--rule); display: grid; align-content: center; }
.scroll { overflow-x: auto; max-height: 480px; overflow-y: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 10px; text-align: left; border-bottom: 1px solid var(--rule); vertical-align: top; }
.number { text-align: right; }
th { color: var(--soft); font-weight: 500; position: sticky; top: 0; background: var(--card); }
"""
