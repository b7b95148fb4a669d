"""`quota doctor`: what runs on this machine."""

from __future__ import annotations

from quota.cli.app import JsonFile, app, console, write_json
from quota.errors import QuotaError


@app.command()
def doctor(json_file: JsonFile = None) -> None:
    """Say which operator backends run on this machine and why the others do not, and which models are supported.

    Ends with code 1 if a backend computes other sums than the reference, or if the one that QUOTA_BACKEND asks for
    cannot run.

    ```text
    quota doctor
    QUOTA_BACKEND=torch quota doctor --json doctor.json
    ```
    """
    from quota.report.doctor import doctor_tables, examine

    examination = examine()
    for table in doctor_tables(examination):
        console.print(table)
    write_json(json_file, examination.figures())
    if not examination.healthy:
        raise QuotaError("a backend is wrong, or the one asked for cannot run; the table says which and why")
