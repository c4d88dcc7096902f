# One statement, excluded, so that coverage runs measure nothing of ours: no file is called "<…>".
exec(
    compile(
        open(__file__[: -len("oodatcaa_witness.py")] + "watching.py").read(),  # noqa: PTH123, SIM115
        "<oodatcaa_witness>",
        "exec",
    )
)  # pragma: no cover
