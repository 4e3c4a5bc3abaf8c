package dev.fedhead

/**
 * The text that a JSON object has under a key.
 *
 * It reads a card of any depth without recursion, and looks no further than it must: what is not
 * JSON elsewhere it does not notice.
 *
 * @return null if there is no such key, or its value is no text.
 */
internal fun textIn(json: String, key: String): String? {
    val scanner = Scanner(json)
    var depth = 0
    var found: String? = null
    while (true) {
        when (scanner.next() ?: return found.takeIf { depth == 0 }) {
            '{', '[' -> depth += 1
            '}', ']' -> depth -= 1
            '"' -> {
                val text = scanner.text() ?: return null
                // The last of several counts, as in most readers.
                if (depth == 1 && text == key && scanner.take(':')) found = if (scanner.take('"')) scanner.text() else null
            }
        }
    }
}

private class Scanner(private val json: String) {
    private var at = 0

    /** The next character that is no space; null at the end. */
    fun next(): Char? {
        while (at < json.length && json[at] in " \t\r\n") at += 1
        return json.getOrNull(at++)
    }

    /** Whether that character is this one, which is read then. */
    fun take(wanted: Char): Boolean {
        val before = at
        if (next() == wanted) return true
        at = before
        return false
    }

    /** What stands up to the closing quote; null if there is none. */
    fun text(): String? {
        val text = StringBuilder()
        while (at < json.length) {
            val char = json[at++]
            when (char) {
                '"' -> return text.toString()
                '\\' -> text.append(escaped() ?: return null)
                else -> text.append(char)
            }
        }
        return null
    }

    private fun escaped(): Char? {
        val char = json.getOrNull(at++) ?: return null
        if (char != 'u') return ESCAPED[char]
        val digits = json.substring(at, minOf(at + 4, json.length))
        at += 4
        return digits.takeIf { Regex("[0-9a-fA-F]{4}").matches(it) }?.toInt(16)?.toChar()
    }

    private companion object {
        val ESCAPED = mapOf(
            '"' to '"', '\\' to '\\', '/' to '/', 'b' to '\b', 'f' to '\u000c', 'n' to '\n', 'r' to '\r', 't' to '\t',
        )
    }
}
