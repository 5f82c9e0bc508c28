"""What eosjax shows of its results: tables, plots and pages.

- `end_of_training`: the comparison table, JSON file and plots that end a training run
- `evaluation`: what `eosjax score` and `eosjax evaluate` measure; `pages`: their pages and that of `eosjax inspect`
- `survey`, `episode_view`: what `eosjax inspect` tells of a dataset; `agreement`: how `eosjax label` agrees with other labels;
  `dataset_tables`: the text of both
- `bench_tables`, `bench_plots`: tables and curves of the benches
- `plan_tables`: the text of `eosjax plan`
- `tables`, `plots`: what all of these are made with; `texts`: how they show a text from outside
"""
