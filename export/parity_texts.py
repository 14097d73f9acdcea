"""200 texts in twelve scripts that clients are compared on, from nothing to beyond the maximum length.

Sentences of our own, joined in ever new orders, so that every text is another one and lengths grow from a word to
paragraphs. The order of the list mixes lengths, which is what makes padding matter in a batch.
"""

from __future__ import annotations

from itertools import chain, zip_longest

SENTENCES = {
    "Latin": (
        "How do I join two tables on a column that both of them have?",
        "Der Schlüssel fehlt in einigen Zeilen, und niemand weiß warum.",
        "¿Cómo ordeno una lista de diccionarios por una de sus claves?",
        "On lit le fichier ligne par ligne, sans tout charger en mémoire.",
        "Tırnak içindeki virgüller ayırıcı olarak sayılmaz.",
    ),
    "Cyrillic": (
        "Как отсортировать словарь по значению?",
        "Каждая строка файла содержит одну запись.",
        "Що робити, коли стовпець порожній?",
        "Среднее считается по всем числам, кроме пропущенных.",
    ),
    "Greek": (
        "Πώς βρίσκω τη διάμεσο μιας λίστας;",
        "Το αρχείο ανοίγει μόνο για ανάγνωση.",
        "Κάθε γραμμή έχει τρεις στήλες και μία ημερομηνία.",
        "Η αναζήτηση επιστρέφει τα πιο κοντινά κείμενα.",
    ),
    "Arabic": (
        "كيف أحسب المتوسط المتحرك لسلسلة زمنية؟",
        "يحتوي كل سطر على سجل واحد فقط.",
        "چگونه دو جدول را با یک ستون مشترک به هم وصل کنم؟",
        "تُحذف القيم المكررة قبل العد.",
    ),
    "Hebrew": (
        "איך מוצאים את הערך הגדול ביותר ברשימה?",
        "הקובץ נקרא שורה אחר שורה.",
        "אם העמודה ריקה, מוחזרת אפס.",
        "החיפוש מחזיר את הטקסטים הקרובים ביותר.",
    ),
    "Devanagari": (
        "फ़ाइल को पंक्ति दर पंक्ति कैसे पढ़ें?",
        "हर पंक्ति में एक ही अभिलेख होता है।",
        "खाली मानों को औसत में नहीं गिना जाता।",
        "दोन तक्ते एका स्तंभावर कसे जोडायचे?",
    ),
    "Bengali": (
        "একটি তালিকা থেকে সদৃশ উপাদান কীভাবে সরাব?",
        "প্রতিটি সারিতে একটি মাত্র তারিখ থাকে।",
        "ফাইলটি শুধু পড়ার জন্য খোলা হয়েছে।",
        "গড় হিসাবে শূন্য মান ধরা হয় না।",
    ),
    "Tamil": (
        "கோப்பை வரி வரியாக எப்படிப் படிப்பது?",
        "ஒவ்வொரு வரியிலும் ஒரே ஒரு பதிவு உள்ளது.",
        "வெற்று மதிப்புகள் சராசரியில் சேராது.",
        "பட்டியலை ஏறுவரிசையில் அடுக்கவும்.",
    ),
    "Thai": (
        "จะอ่านไฟล์ทีละบรรทัดได้อย่างไร",
        "แต่ละแถวมีวันที่เพียงวันเดียว",
        "ค่าที่ว่างจะไม่ถูกนับในค่าเฉลี่ย",
        "การค้นหาคืนข้อความที่ใกล้เคียงที่สุด",
    ),
    "Han": (
        "如何合并两个数据框？",
        "每一行只有一条记录，最后一列是日期。",
        "計算平均值時不包括空白的欄位。",
        "搜索返回意思最接近的文本。",
    ),
    "Kana": (
        "文字列を日付に変換するにはどうすればよいですか。",
        "からの行はかぞえません。",
        "ファイルは一行ずつ読み込まれます。",
        "リストを値の小さい順に並べかえます。",
    ),
    "Hangul": (
        "문자열에서 숫자만 추출하는 방법은 무엇인가요?",
        "각 줄에는 기록이 하나씩 있습니다.",
        "빈 값은 평균에 포함되지 않습니다.",
        "두 표를 같은 열로 합치고 싶습니다.",
    ),
}
"""Script to sentences in it."""
ODD = (
    "",
    "a",
    " ",
    "?!",
    "0123456789",
    "é e\u0301 \u200b\ufeff zero width",
    "emoji 🚀👩‍👩‍👧 and \t tabs\r\n",
    "numpy.stack(arrays, axis=0, out=None)  # join along a new axis",
)
"""Texts that are cut, cleaned or counted differently by careless clients."""


def parity_texts(max_tokens: int, *, count: int = 200) -> list[str]:
    """Distinct texts, the same in every call.

    Args:
        max_tokens: of the model; the last text has at least as many.
        count: of texts, more than those of `ODD` and the longest.

    Returns:
        The odd texts, then one, three, five and seven sentences in every script by turns, then a text beyond the
        maximum.
    """
    wanted = count - len(ODD) - 1
    for_each = -(-wanted // len(SENTENCES))
    by_script = [[_joined(sentences, number) for number in range(for_each)] for sentences in SENTENCES.values()]
    mixed = [text for text in chain.from_iterable(zip_longest(*by_script)) if text][:wanted]
    return [*ODD, *mixed, " ".join(["word"] * max_tokens)]


def _joined(sentences: tuple[str, ...], number: int) -> str:
    """Text `number` of a script: its sentences from one start after another, then more of them."""
    start, size = number % len(sentences), 1 + number // len(sentences) * 2
    parts = [sentences[(start + step) % len(sentences)] for step in range(size)]
    return " ".join(parts)
