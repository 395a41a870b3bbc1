"""The text that tokenizers are compared on: deterministic, over 1 MB, many scripts and every kind of oddity."""

import random
import sysconfig
import unicodedata
from pathlib import Path

SENTENCES = (
    "The quick brown fox can't jump over 1,234 lazy dogs; they'll've left by 5:30 PM.",
    "Ça m'étonne : l'œuvre coûte 12,50 € à Noël, n'est-ce pas ?",
    "Größere Straßen führen über die Brücke, heißt es im Jahr 2024.",
    "El niño comió ñoquis y preguntó: ¿cuánto cuestan 3½ kilos?",
    "Съешь же ещё этих мягких французских булок, да выпей чаю № 7.",
    "我们在２０２４年十二月二十五日见面，好吗？价格是￥99。",
    "吾輩は猫である。名前はまだ無い。カタカナとﾊﾝｶｸも混ぜる。",
    "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
    "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق ١٢٣٤٥.",
    "כל בני אדם נולדו בני חורין ושווים בערכם ובזכויותיהם.",
    "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता १२३ है।",
    "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์ ๑๒๓",
    "Tất cả mọi người sinh ra đều được tự do và bình đẳng.",
    "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι.",
    "Bütün insanlar hür doğar; İstanbul'da ığdır çok güzel.",
    "ყველა ადამიანი იბადება თავისუფალი. Ամեն մարդ ծնվում է ազատ։",
    "👩‍👩‍👧‍👦 family, 🏳️‍🌈 flag, 👍🏽 thumb, 🇩🇪🇫🇷 nations, 1️⃣2️⃣ keycaps, ❤️‍🔥",
    "e\u0301 decomposed, é composed, ﬁ ligature, Å ångström Å, ½ ¼ ² ³ ① Ⅷ 〇 ൧൨",
    "x = [i**2 for i in range(10_000)]  # 3.14e-10 0xDEADBEEF\n\tif x:\n\t\treturn\r\n\r\n",
    "<div class='a'>&nbsp;</div> $$\\frac{a}{b}$$ https://example.org/?q=1&r=2#s @user #tag",
    "it's IT'S He'Ll we'VE I'M they'RE 'tis y'all'd o'clock ''s '' 'S",
    "a  b   c    d\u00a0e\u2003f\u3000g\u200bh\ufeffi\u2028j\u2029k\x0bl\x0cm\x85n",
    "\n\n\n  \n \t \n    indented\n  \r\r\n\n trailing   ",
)
STDLIB = (
    "argparse.py",
    "ast.py",
    "calendar.py",
    "dataclasses.py",
    "datetime.py",
    "difflib.py",
    "doctest.py",
    "inspect.py",
    "statistics.py",
    "typing.py",
)


def documents(num_mixed: int = 3000) -> list[str]:
    """Texts of 1 to 100,000 characters, over 1 MB in all. No bytes that only unassigned characters need."""
    rng = random.Random(20240229)
    library = Path(sysconfig.get_path("stdlib"))
    texts = [(library / name).read_text(encoding="utf-8") for name in STDLIB]
    texts += _scripts()
    texts += [_mixed(rng) for _ in range(num_mixed)]
    return texts + list(SENTENCES)


def _scripts() -> list[str]:
    """Every assigned, non-control character of the first planes, in blocks of 256, alone and with spaces between."""
    blocks = []
    for start in [*range(0, 0x20000, 0x100), 0x20000, 0x2A600, 0x30000]:
        block = [chr(c) for c in range(start, start + 0x100) if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co", "Cc")]
        if block:
            blocks += ["".join(block), " ".join(block)]
    return blocks


def _mixed(rng: random.Random) -> str:
    """A few cuts of sentences, digits, white space and punctuation, glued without regard to words."""
    parts = []
    for _ in range(rng.randint(1, 8)):
        sentence = rng.choice(SENTENCES)
        start = rng.randrange(len(sentence))
        parts.append(sentence[start : start + rng.randint(1, 30)])
        parts.append(rng.choice((" ", "  ", "\n", "\n\n", "\t", "", " \n ", "\r\n", str(rng.randrange(10**9)), "...", "!?", "'", "'s", "—", " 's")))
    return "".join(parts)
