package application;

import library.Words;

/** Prints how many words it was given. */
public final class Main {
    private Main() {
    }

    public static void main(String[] arguments) {
        System.out.println(Words.MARKER + " " + Words.count(String.join(" ", arguments)));
    }
}
