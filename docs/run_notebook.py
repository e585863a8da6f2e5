"""Runs the notebook in a folder of its own and keeps what it shows: `python docs/run_notebook.py`.

Needs the extra dev-all. The outputs are committed, so that the notebook can be read without running
it; run this again after a change of the notebook, or of what it trains.
"""

import pathlib
import tempfile

import nbclient
import nbformat

NOTEBOOK = pathlib.Path(__file__).parents[1] / "notebooks" / "quickstart.ipynb"
# Other forms of an output than the page shows, if it has these.
NEEDLESS = {"image/png": ("image/jpeg",), "text/plain": ("text/html",)}


def main() -> None:
    """Runs the notebook and writes it back with its outputs."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (place,) = [n for n, cell in enumerate(notebook.cells) if cell.metadata.get("tags")]
    configs = nbformat.v4.new_code_cell(f"CONFIGS = {str(NOTEBOOK.parents[1] / 'configs')!r}")
    notebook.cells.insert(place + 1, configs)
    with tempfile.TemporaryDirectory() as folder:
        client = nbclient.NotebookClient(
            notebook, timeout=1800, resources={"metadata": {"path": folder}}
        )
        client.execute()
    del notebook.cells[place + 1]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for number, cell in enumerate(code, start=1):
        cell.execution_count = number
        cell.metadata.pop("execution", None)
        cell.outputs = [_slim(output, number) for output in cell.outputs]
    notebook.metadata.language_info = {"name": "python"}
    nbformat.write(notebook, NOTEBOOK)


def _slim(output, number: int):
    """An output without its needless forms."""
    data = output.get("data", {})
    for kept, dropped in NEEDLESS.items():
        for kind in dropped if kept in data else ():
            data.pop(kind, None)
    if "execution_count" in output:
        output.execution_count = number
    return output


if __name__ == "__main__":
    main()
