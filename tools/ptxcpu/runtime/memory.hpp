// Addresses: bounds and alignment checks for every access, and the race detector for shared memory.
#pragma once
#include <type_traits>

#include "thread.hpp"

namespace ptxcpu {

enum class Access { kRead, kWrite, kAtomic };

/// Race-detector record of one byte of shared memory: its last writer, its last reader, and the
/// thread whose cp.async to it has not been waited for.
struct SharedByte {
  static constexpr i32 kNobody = -1;
  static constexpr i32 kSeveralWarps = -2;

  i32 writer = kNobody;
  u32 write_barrier_epoch = 0;
  u32 write_warp_epoch = 0;
  i32 reader = kNobody;
  u32 read_barrier_epoch = 0;
  u32 read_warp_epoch = 0;
  i32 copying = kNobody;
};

/// Finds the buffer around [address, address + bytes) and
/// stores it in `cache`; fails if there is none.
PTXCPU_COLD void find_buffer(Thread& t, u64 address, u32 bytes, Range& cache, Access access,
                             int line, const char* what);

/// Records the access, and fails if another thread touched the bytes with no barrier in between.
void check_race(Thread& t, u32 offset, u32 bytes, Access access, int line);

/// Marks the destination of a cp.async as being copied by thread `copying`, or by kNobody.
void mark_copying(Thread& t, u32 offset, u32 bytes, i32 copying);

[[noreturn]] PTXCPU_COLD void fail_misaligned(Thread& t, u64 address, int bytes, int line,
                                              const char* what);

template <int Bytes>
PTXCPU_INLINE u8* global_pointer(Thread& t, u64 address, int site, Access access, int line,
                                 const char* what) {
  if (PTXCPU_UNLIKELY(address & (Bytes - 1))) fail_misaligned(t, address, Bytes, line, what);
  Range& cache = t.site_cache[site];
  if (PTXCPU_UNLIKELY(!cache.contains(address, Bytes))) {
    find_buffer(t, address, Bytes, cache, access, line, what);
  }
  return reinterpret_cast<u8*>(address);
}

[[noreturn]] PTXCPU_COLD void fail_shared(Thread& t, u32 offset, int bytes, int line,
                                          const char* what);

/// What an access to shared memory does in stress mode, where other threads get a chance to run
/// before it, and for the race detector.
PTXCPU_COLD void watch_shared(Thread& t, u32 offset, u32 bytes, Access access, bool may_yield,
                              int line);

// Kernels have thousands of these: everything that is rarely needed is out of line.
template <int Bytes, bool MayYield = true>
PTXCPU_INLINE u8* shared_pointer(Thread& t, u32 offset, Access access, int line, const char* what) {
  const bool misaligned = offset & (Bytes - 1);
  const bool beyond = offset + u64(Bytes) > t.shared_bytes;
  if (PTXCPU_UNLIKELY(misaligned || beyond)) fail_shared(t, offset, Bytes, line, what);
  if (PTXCPU_UNLIKELY(t.shared_is_watched)) watch_shared(t, offset, Bytes, access, MayYield, line);
  return t.shared + offset;
}

/// Generic addresses are host addresses: shared memory and the
/// thread's own stack are windows among them.
template <int Bytes>
PTXCPU_INLINE u8* generic_pointer(Thread& t, u64 address, int site, Access access, int line,
                                  const char* what) {
  const u64 shared_offset = address - reinterpret_cast<u64>(t.shared);
  if (shared_offset < t.shared_bytes) {
    return shared_pointer<Bytes>(t, static_cast<u32>(shared_offset), access, line, what);
  }
  const u64 stack_offset = address - reinterpret_cast<u64>(t.stack);
  if (stack_offset < kStackBytes) return reinterpret_cast<u8*>(address);
  return global_pointer<Bytes>(t, address, site, access, line, what);
}

PTXCPU_INLINE bool is_shared_address(const Thread& t, u64 address) {
  return address - reinterpret_cast<u64>(t.shared) < t.shared_bytes;
}

PTXCPU_INLINE bool is_local_address(const Thread& t, u64 address) {
  return address - reinterpret_cast<u64>(t.stack) < kStackBytes;
}

/// Atomic read-modify-write with any function; blocks on several workers may meet at one address.
template <class T, class Function>
PTXCPU_INLINE T atomic_update(u8* address, Function function) {
  using Word =
      std::conditional_t<sizeof(T) == 8, u64, std::conditional_t<sizeof(T) == 4, u32, u16>>;
  Word* word = reinterpret_cast<Word*>(address);
  Word old_bits = __atomic_load_n(word, __ATOMIC_RELAXED);
  Word new_bits;
  do {
    new_bits = bits_as<Word>(static_cast<T>(function(bits_as<T>(old_bits))));
  } while (!__atomic_compare_exchange_n(word, &old_bits, new_bits, false, __ATOMIC_SEQ_CST,
                                        __ATOMIC_RELAXED));
  return bits_as<T>(old_bits);
}

}  // namespace ptxcpu
