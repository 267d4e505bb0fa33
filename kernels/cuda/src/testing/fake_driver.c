// The NVIDIA driver's library as tests want it: without a device, with one that is too old or too small,
// one that computes nothing, one that is lost, or one whose kernels a test runs on the emulator.
//
// VECTIDE_FAKE_CUDA names which. Work is done at once, in order; a capture keeps its launches with their
// arguments. Only what kernels/cuda calls is here, with the driver's own signatures and error codes.

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, INVALID = 1, NO_MEMORY = 2, STUB = 34, NO_DEVICE = 100, NO_BINARY = 209, ILLEGAL = 700 };
enum { ARGUMENTS_MAX = 16, LAUNCHES_MAX = 64 };

typedef int (*Run)(const char* kernel, unsigned grid_x, unsigned grid_y, unsigned threads,
                   size_t shared_bytes, uint64_t* words, size_t count);
typedef size_t (*Count)(const char* kernel);
static Run run;
static Count count;

/// What launches do, and how many arguments a kernel has; without it they do nothing.
void vectide_fake_set_kernels(Run new_run, Count new_count) { run = new_run; count = new_count; }

static int is(const char* mode) {
    const char* set = getenv("VECTIDE_FAKE_CUDA");
    return set && strcmp(set, mode) == 0;
}

int cuInit(unsigned flags) { (void)flags; return is("stub") ? STUB : is("no-device") ? NO_DEVICE : OK; }
int cuDriverGetVersion(int* version) { *version = is("old-driver") ? 12040 : 13000; return OK; }

#ifndef WITHOUT_THE_REST
// Every call on a context fails from the launch on that loses it until there is a new one.
static int is_lost, launches_left = -1;
#define ALIVE if (is_lost) return ILLEGAL

typedef struct {
    const char* kernel;
    unsigned grid_x, grid_y, threads, shared_bytes;
    size_t words;
    uint64_t word[ARGUMENTS_MAX];
} Launch;
typedef struct { size_t count; Launch launch[LAUNCHES_MAX]; } Graph;
typedef struct { Graph* captured; } Stream;

int cuDeviceGetCount(int* devices) { *devices = is("empty") ? 0 : 1; return OK; }
int cuDeviceGet(int* device, int ordinal) { *device = ordinal; return ordinal == 0 ? OK : INVALID; }
int cuDeviceGetName(char* name, int length, int device) {
    (void)device;
    strncpy(name, "Fake GPU", (size_t)length);
    return OK;
}
int cuDeviceTotalMem_v2(size_t* bytes, int device) { (void)device; *bytes = (size_t)8 << 30; return OK; }
int cuDeviceGetAttribute(int* value, int attribute, int device) {
    (void)device;
    switch (attribute) {
        case 16: *value = 4; return OK;                        // multiprocessors
        case 75: *value = is("old-device") ? 7 : 9; return OK; // compute capability
        case 76: *value = is("old-device") ? 5 : 0; return OK;
        case 97: *value = 99 * 1024; return OK;                // shared memory of a block
        default: return INVALID;
    }
}

int cuCtxCreate_v4(void** context, void* parameters, unsigned flags, int device) {
    static int made;
    (void)parameters; (void)flags; (void)device;
    if (is("lost-for-good") && made++ > 0) return ILLEGAL;
    is_lost = 0;
    *context = &is_lost;
    return OK;
}
int cuCtxDestroy_v2(void* context) { (void)context; return OK; }
int cuCtxSetCurrent(void* context) { (void)context; return OK; }
int cuCtxGetStreamPriorityRange(int* least, int* greatest) { ALIVE; *least = 0; *greatest = -5; return OK; }

int cuModuleLoadData(void** module, const void* image) {
    static const unsigned char FATBIN[4] = {0x50, 0xed, 0x55, 0xba};
    if (is("no-binary")) return NO_BINARY;
    *module = &is_lost;
    return memcmp(image, FATBIN, 4) == 0 ? OK : INVALID;
}
int cuModuleUnload(void* module) { (void)module; return OK; }
int cuModuleGetFunction(void** function, void* module, const char* name) {
    (void)module;
    *function = strdup(name);
    return OK;
}
int cuFuncSetAttribute(void* function, int attribute, int value) {
    (void)function;
    return attribute == 8 && value == 99 * 1024 ? OK : INVALID;
}

int cuMemGetInfo_v2(size_t* free_bytes, size_t* all) {
    ALIVE;
    *all = (size_t)8 << 30;
    *free_bytes = is("little-memory") ? (size_t)257 << 20 : *all;
    return OK;
}
int cuMemAlloc_v2(uint64_t* address, size_t bytes) {
    ALIVE;
    if (is("out-of-memory")) return NO_MEMORY;
    bytes = (bytes + 255) / 256 * 256;
    void* memory = aligned_alloc(256, bytes);
    if (!memory) return NO_MEMORY;
    // What nobody has written is no number.
    memset(memory, 0xFF, bytes);
    *address = (uint64_t)memory;
    return OK;
}
int cuMemFree_v2(uint64_t address) { free((void*)address); return OK; }
int cuMemHostAlloc(void** memory, size_t bytes, unsigned flags) {
    ALIVE;
    *memory = flags == 0 ? malloc(bytes) : NULL;
    return *memory ? OK : INVALID;
}
int cuMemFreeHost(void* memory) { free(memory); return OK; }
int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void* stream) {
    ALIVE; (void)stream;
    memcpy((void*)to, from, bytes);
    return OK;
}
int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void* stream) {
    ALIVE; (void)stream;
    memcpy(to, (void*)from, bytes);
    return OK;
}

int cuStreamCreateWithPriority(void** stream, unsigned flags, int priority) {
    ALIVE;
    if (flags != 1 || (priority != 0 && priority != -5)) return INVALID;
    *stream = calloc(1, sizeof(Stream));
    return OK;
}
int cuStreamDestroy_v2(void* stream) { free(stream); return OK; }
int cuStreamSynchronize(void* stream) { ALIVE; (void)stream; return OK; }
int cuStreamBeginCapture_v2(Stream* stream, int mode) {
    ALIVE;
    if (mode != 1 || stream->captured) return INVALID;
    stream->captured = calloc(1, sizeof(Graph));
    return OK;
}
int cuStreamEndCapture(Stream* stream, void** graph) {
    ALIVE;
    *graph = stream->captured;
    stream->captured = NULL;
    return *graph ? OK : INVALID;
}

static int carry_out(Launch* launch) {
    if (launches_left < 0) {
        const char* set = getenv("VECTIDE_FAKE_CUDA_LAUNCHES");
        launches_left = set ? atoi(set) : 1 << 30;
    }
    if (launches_left-- == 0) {
        is_lost = 1;
        return ILLEGAL;
    }
    if (!run) return OK;
    return run(launch->kernel, launch->grid_x, launch->grid_y, launch->threads, launch->shared_bytes,
               launch->word, launch->words) == 0 ? OK : ILLEGAL;
}
int cuLaunchKernel(const char* function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                   unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,
                   Stream* stream, void** parameters, void** extra) {
    ALIVE;
    Launch launch = {function, grid_x, grid_y, block_x, shared_bytes, count ? count(function) : 0, {0}};
    if (grid_z != 1 || block_y != 1 || block_z != 1 || extra || launch.words > ARGUMENTS_MAX) return INVALID;
    // Arguments stand in words of eight bytes.
    for (size_t at = 0; at < launch.words; at++) memcpy(&launch.word[at], parameters[at], 8);
    if (!stream->captured) return carry_out(&launch);
    if (stream->captured->count == LAUNCHES_MAX) return INVALID;
    stream->captured->launch[stream->captured->count++] = launch;
    return OK;
}
int cuGraphInstantiateWithFlags(Graph** executable, Graph* graph, unsigned long long flags) {
    ALIVE;
    if (flags != 0) return INVALID;
    *executable = malloc(sizeof(Graph));
    **executable = *graph;
    return OK;
}
int cuGraphDestroy(Graph* graph) { free(graph); return OK; }
int cuGraphExecDestroy(Graph* executable) { free(executable); return OK; }
int cuGraphUpload(Graph* executable, void* stream) { ALIVE; (void)executable; (void)stream; return OK; }
int cuGraphLaunch(Graph* executable, void* stream) {
    ALIVE; (void)stream;
    for (size_t at = 0; at < executable->count; at++) {
        const int code = carry_out(&executable->launch[at]);
        if (code != OK) return code;
    }
    return OK;
}
#endif
