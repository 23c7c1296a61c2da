"""Tasks for the NOTICE pipeline: tables of image-text pairs with two answers and two corruptions.

`pairs` is the schema of such a table, and every other module here fills it. Imports nothing else of the
package.
"""
