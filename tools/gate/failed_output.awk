# What the test programs that failed printed last, from what `cargo test` and they print: at most `lines` lines of
# each, at most 300 characters of a line. tools/check repeats it at its end, where it is found.

function finish(    i) {
    if (program != "" && (failed || !summed)) {
        print program
        for (i = (n > lines ? n - lines + 1 : 1); i <= n; i++) print "    " said[i]
    }
    n = failed = summed = 0
}
/^ *(Running|Doc-tests) / { finish(); program = $0; sub(/^ */, "", program); next }
# Documentation tests have two results; what comes behind the last is of cargo.
/^test result: / { summed = 1; if (/^test result: FAILED/) failed = 1; next }
!summed || !failed { said[++n] = substr($0, 1, 300) }
END { finish() }
