# What became of each test, from what `cargo test` and test programs print: "failed TAB PROGRAM: TEST" for each that
# failed anywhere, and "ignored TAB TEST TAB REASON" for each that was never run. tools/check shows it at its end.

function finish() {
    if (program != "" && !summed) print "failed\t" program ": ended before its tests had"
    summed = 0
}
/^ *Running .* in a virtual machine/ { finish(); program = $2 " in the virtual machine"; next }
/^ *Running .*\(.*\)$/ {
    finish(); program = $NF; gsub(/.*\/|-[0-9a-f]+\)$/, "", program); next
}
/^ *Doc-tests / { finish(); program = "documentation of " $2; next }
/^test result: / { summed = 1; next }
!/^test .* \.\.\. (ok|FAILED|ignored)/ { next }
{
    name = $0; sub(/^test /, "", name)
    what = name; sub(/ \.\.\. .*/, "", name); what = substr(what, length(name) + 6)
}
what ~ /^ignored/ { sub(/^ignored,? ?/, "", what); why[name] = what; next }
{ ran[name] = 1 }
what ~ /^FAILED/ && !told[program, name]++ { print "failed\t" program ": " name }
END {
    finish()
    for (name in why) if (!(name in ran)) print "ignored\t" name "\t" why[name]
}
