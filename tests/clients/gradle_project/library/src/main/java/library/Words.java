package library;

/** Counts words. */
public final class Words {
    public static final String MARKER = "@MARKER@";

    private Words() {
    }

    public static int count(String text) {
        String trimmed = text.trim();
        return trimmed.isEmpty() ? 0 : trimmed.split("\\s+").length;
    }
}
