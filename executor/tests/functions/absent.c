/* A library that is not there when another one needs it. */
int absent(void) { return 1; }
