"""A fuzzer for everything that zipsdk reads: image files, arrays, models, sidecars, manifests and command lines.

``make fuzz`` runs it. Hypothesis generates the inputs, so that a seed and a number name each of them and so that a
failure is shrunk; Atheris (libFuzzer) can steer the same generators by coverage. Modules:

- `seeds`, `edits`, `tiff`, `png`, `jpeg`, `boxes`, `headers`: image files with a damaged part;
- `arrays`, `options`, `arguments`, `guards`, `graphs`, `texts`, `commands`: everything else;
- `checks_*`: the rules that hold for every input;
- `kinds`: the table of all kinds with their limits;
- `worker`, `__main__`: processes that run them, and the table at the end.
"""
