"""Texts that every model is tried on: what a check of parity, or of a number format, compares embeddings of."""

SAMPLE_TEXTS = [
    "",
    "a",
    "how do I join two tables on a shared column?",
    "Return the mean of an array along the given axis.\n\nParameters\n----------\na : array_like",
    "numpy.stack(arrays, axis=0, out=None)  # join along a new axis",
    "Wie teile ich eine Zeichenkette an jedem Komma?",
    "¿Cómo ordeno una lista de diccionarios por una clave?",
    "Comment lire un fichier ligne par ligne sans tout charger en mémoire ?",
    "как отсортировать словарь по значению",
    "كيف أحسب المتوسط المتحرك لسلسلة زمنية؟",
    "फ़ाइल को पंक्ति दर पंक्ति कैसे पढ़ें",
    "একটি তালিকা থেকে সদৃশ উপাদান কীভাবে সরাব?",
    "如何合并两个数据框？",
    "文字列を日付に変換する方法",
    "문자열에서 숫자만 추출하는 방법",
    "จะอ่านไฟล์ทีละบรรทัดได้อย่างไร",
    "פונקציה שמחזירה את הערך הגדול ביותר",
    "Πώς βρίσκω τη διάμεσο μιας λίστας;",
    "emoji 🚀 and \t tabs \u200b zero width, \x00 NUL",
    "word " * 3000,
]
"""Eleven scripts, the empty text, and one text beyond any maximum length."""
