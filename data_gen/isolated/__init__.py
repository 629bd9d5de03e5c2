"""Inside of the sandbox: what the worker's processes are made of. Standard library only; nothing here is imported by
the program that uses ``data_gen.sandbox``, except the names of limits and the text of feedback.

    supervisor (``sandbox_worker.py``)  takes requests, holds tests and expected values, judges. Runs no foreign code
      zygote (``zygote.py``)            process 1 of the namespaces; forks; never sees a program
        child (``attempt.py``)          runs one program, answers questions about it
"""
