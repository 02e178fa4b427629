"""`tunesmith doctor`: what this machine has, and what is missing."""

from tunesmith.cli.parser import Parser


def run(arguments: list[str]) -> int:
    """Print a table; exit code 1 if something that every run needs is missing."""
    Parser(prog="tunesmith doctor", description="What this machine has.").parse_args(arguments)

    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch
    from rich.console import Console
    from rich.table import Table

    from tunesmith.base.catalog import cache_dir, resolve
    from tunesmith.base.load import choose_compute
    from tunesmith.errors import ModelError
    from tunesmith.plan.machine import available_bytes
    from tunesmith.plan.speed import measure_flops
    from tunesmith.recipe import Recipe

    compute = choose_compute(Recipe())
    table = Table(show_header=False, box=None)
    table.add_row("python", platform.python_version())
    for name in ("torch", "transformers", "peft", "bitsandbytes", "datasets"):
        try:
            table.add_row(name, version(name))
        except PackageNotFoundError:
            table.add_row(name, "[red]missing[/]")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none that torch sees"
    table.add_row("GPU", gpu)
    table.add_row("CPU threads", str(torch.get_num_threads()))
    table.add_row("compute", f"{str(compute.dtype).removeprefix('torch.')} on {compute.device}: {compute.reason}")
    table.add_row("memory free", f"{available_bytes(compute.device) / 1e9:.1f} GB")
    table.add_row("matrix products", f"{measure_flops(compute.device, compute.dtype, 1024) / 1e9:,.0f} GFLOP/s")
    table.add_row("cache", str(cache_dir()))
    try:
        bundled = "ready" if resolve("smollm2-135m") else ""
    except ModelError as error:
        bundled = f"[red]{error}[/]"
    table.add_row("bundled model", bundled)
    Console().print(table)
    return 1 if "red" in bundled else 0
