/* What rfaas_function.h says of its structures: name, size or offset, a line each. */
#include <rfaas_function.h>
#include <stdio.h>

#define SHOW(type, field) printf(#type "." #field " %zu\n", offsetof(struct type, field))

int main(void) {
    printf("rfaas_api %zu\n", sizeof(struct rfaas_api));
    SHOW(rfaas_api, version), SHOW(rfaas_api, bytes), SHOW(rfaas_api, self), SHOW(rfaas_api, room);
    SHOW(rfaas_api, input), SHOW(rfaas_api, output), SHOW(rfaas_api, emit), SHOW(rfaas_api, call);
    SHOW(rfaas_api, again), SHOW(rfaas_api, fail), SHOW(rfaas_api, none);
    SHOW(rfaas_api, leaving), SHOW(rfaas_api, note);
    printf("rfaas_self %zu\n", sizeof(struct rfaas_self));
    SHOW(rfaas_self, bytes), SHOW(rfaas_self, function), SHOW(rfaas_self, member), SHOW(rfaas_self, members);
    SHOW(rfaas_self, slot), SHOW(rfaas_self, inputs), SHOW(rfaas_self, edges);
    printf("rfaas_run %zu\n", sizeof(struct rfaas_run));
    SHOW(rfaas_run, bytes), SHOW(rfaas_run, slot), SHOW(rfaas_run, input), SHOW(rfaas_run, input_bytes);
    SHOW(rfaas_run, room), SHOW(rfaas_run, output), SHOW(rfaas_run, output_bytes), SHOW(rfaas_run, ended);
    SHOW(rfaas_run, code);
    printf("RFAAS_NO_SUCH %d\nRFAAS_ABSENT %d\nRFAAS_RIGHTS %d\nRFAAS_BOUNDS %d\nRFAAS_BUSY %d\n", RFAAS_NO_SUCH,
           RFAAS_ABSENT, RFAAS_RIGHTS, RFAAS_BOUNDS, RFAAS_BUSY);
    printf("RFAAS_TIME %d\nRFAAS_LOST %d\n", RFAAS_TIME, RFAAS_LOST);
    printf("RFAAS_VALUE %d\nRFAAS_FAILED %d\nRFAAS_NO_VALUE %d\n", RFAAS_VALUE, RFAAS_FAILED, RFAAS_NO_VALUE);
    return 0;
}
