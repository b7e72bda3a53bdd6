"""Writes smollm2_ids.json: what llama.cpp makes of some texts with SmolLM2's vocabulary.

Run by hand with llama-cpp-python installed (the `bench` extra):
python tests/text/make_smollm2_ids.py MODEL.gguf
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from llama_cpp import Llama

TEXTS = (
    "", " ", "\n", "Hello, world!", "I'm sure they'll say DON'T, you've 'LL it's",
    "12345 1 22 3.14159 ١٢٣ ½ x²",
    "  two  spaces   and\ttabs\n\n\nlines \n  x \r\n y\r\n\r\n",
    "naïve café Übergröße ẞ Ångström", "cafe\u0301", "你好，世界！这是一个测试。", "Привет, МИР",
    "नमस्ते दुनिया", "สวัสดีครับ", "한국어 あいうえお", "🙂👨\u200d👩\u200d👧 ❤️ 🇫🇷",
    "camelCaseWORD HTTPServer iPhone ǅ ʰx", "http://a.b/c?d=e&f=g//h\n/\n",
    "<|im_end|><|im_start|>[INST]<s>", "a_b__c $x+y=z^2~|`<=>",
    "foo();\n\n\treturn x;  \n}\n", "\u00a0\u2003x\u3000y", "...!!!\n\n//\n", "ﬁ Ⅷ ①",
    "x" * 70, "trailing space ", "def f(a, b=2):\n    return a**b  # comment\n",
    "{\"a\": [1, 2.5e-3, null]}",
)


def main() -> None:
    model = Llama(sys.argv[1], vocab_only=True, verbose=False)
    ids = {text: model.tokenize(text.encode(), add_bos=False, special=False) for text in TEXTS}
    rows = ",\n".join(f"  {json.dumps(text)}: {json.dumps(row)}" for text, row in ids.items())
    Path(__file__).with_name("smollm2_ids.json").write_text(f"{{\n{rows}\n}}\n")


if __name__ == "__main__":
    main()
