"""Tasks for the NOTICE pipeline: tables of image-text pairs with two answers and two corruptions.

`pairs` is the schema of such a table, and `sources` streams rows of it by a task's name: the shapes world, the three
data sets of the NOTICE paper as they are downloaded, a user's own folder, or a parquet file. `replacements` makes
the corrupt prompts. `rows` is the one validator of what a user brings, and `tables` the one reader of comma-separated
values; pictures are read by `hooked_vlm.images`.
"""
