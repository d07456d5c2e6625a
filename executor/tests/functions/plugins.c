// A library with a dependency, and a plugin of it that relies on the dependency's symbols being there, as
// extension modules of an embedded interpreter do. Three files of one source.
#include <dlfcn.h>
#include <stdint.h>
#include <string.h>

int core_value(void);
int plugin_value(void);

#if defined(CORE)
int core_value(void) { return 7; }
#elif defined(PLUGIN)
int plugin_value(void) { return 2 * core_value(); }
#else
// The input is the plugin's path, the output what it says, or why it cannot be loaded.
uint32_t load_plugin(void *in, uint32_t n, void *out) {
    char path[4096];
    memcpy(path, in, n);
    path[n] = 0;
    void *plugin = dlopen(path, RTLD_NOW);
    int (*value)(void) = plugin ? (int (*)(void))dlsym(plugin, "plugin_value") : 0;
    if (!value) {
        const char *why = dlerror();
        memcpy(out, why, strlen(why));
        return strlen(why);
    }
    *(unsigned char *)out = value() + core_value();
    return 1;
}
#endif
