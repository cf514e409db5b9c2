"""tools/check_layers.py finds each kind of fault, in a tree made for it, and accepts the same tree without them."""
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

TOOL = Path(__file__).resolve().parents[2] / "tools" / "check_layers.py"

# file, content, what the fault's line must hold (None: no fault)
CASES = [
    ("src/core/a.h", "#include <vector>\n#include <sys/mman.h>\n", None),
    ("src/ops/a.cpp", '#include "core/a.h"\n#include "ops/a.h"\n#include <hwy/highway.h>\n', None),
    ("src/io/quiet.cpp", '// abort() is never called\nconst char* text = "printf(";\nstatic_assert(true);\nsnprintf(b, n, f);\n', None),
    ("src/core/up.h", '#include "ops/a.h"\n', "may include only core, megalodon"),
    ("src/infer/side.h", '#include "train/a.h"\n', "may include only"),
    ("src/io/side.h", '#include "cpu/a.h"\n', "may include only"),
    ("reference/r.h", '#include "ops/a.h"\n', "may include only"),
    ("src/nowhere/a.h", "", "src/nowhere is no layer"),
    ("include/megalodon/a.h", '#include "core/a.h"\n', "may include only megalodon"),
    ("include/megalodon/b.h", "#include <nlohmann/json.hpp>\n", "only themselves and the standard library"),
    ("include/megalodon/c.h", "#include <unistd.h>\n", "only themselves and the standard library"),
    ("src/core/json.h", "#include <nlohmann/json.hpp>\n", "not to core"),
    ("src/core/boost.h", "#include <boost/any.hpp>\n", "unknown library"),
    ("src/core/bare.cpp", '#include "absent.h"\n', "no such file"),
    ("src/ops/ends.cpp", "void f() { std::abort(); }\n", "never ends the process"),
    ("src/ops/exits.cpp", "void f() { exit(1); }\n", "never ends the process"),
    ("src/ops/asserts.cpp", "void f() { assert(true); }\n", "never aborts"),
    ("src/ops/prints.cpp", "void f() { std::printf(x); }\n", "never prints"),
    ("src/ops/streams.cpp", "void f() { std::cout << 1; }\n", "never prints"),
    ("src/ops/later.cpp", "// TO" "DO: the rest\n", "finish it"),
    ("docs/long.md", "line\n" * 801, "801 lines"),
]


class CheckLayersTest(unittest.TestCase):
    def check(self, cases):
        with tempfile.TemporaryDirectory() as folder:
            for name, content, _ in cases:
                path = Path(folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(content, encoding="utf-8")
            return subprocess.run([sys.executable, TOOL, folder], capture_output=True, text=True, check=False)

    def test_accepts_what_keeps_the_rules(self):
        run = self.check([case for case in CASES if case[2] is None])
        self.assertEqual((run.returncode, run.stderr), (0, ""), run.stdout)

    def test_names_each_fault(self):
        run = self.check(CASES)
        self.assertEqual((run.returncode, run.stderr), (1, ""))
        lines = run.stdout.splitlines()
        for name, _, text in CASES:
            found = [line for line in lines if line.startswith(name + ":")]
            with self.subTest(name):
                self.assertEqual(len(found), 0 if text is None else 1, run.stdout)
                if text:
                    self.assertIn(text, found[0])


if __name__ == "__main__":
    unittest.main()
