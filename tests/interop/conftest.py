"""Prints, at the end of a session, how far from PyTorch the full-size models were at most."""


def pytest_terminal_summary(terminalreporter):
    rows = [
        (report.nodeid.rpartition("[")[2].rstrip("]"), *value)
        for report in terminalreporter.stats.get("passed", [])
        for name, value in report.user_properties
        if name == "parity"
    ]
    if rows:
        terminalreporter.section("largest absolute differences from PyTorch, float32")
        for name, what, difference, spread in rows:
            terminalreporter.write_line(
                f"{name:<28} {what:<14} {difference:.1e}  (values have a spread of {spread:.2f})"
            )
