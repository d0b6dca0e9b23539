//! What becomes of freed memory in the host's programs, whose allocator is mimalloc.

const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15; // `mi_option_purge_delay` of mimalloc.h, which the crate leaves out

fn set_purge_delay(milliseconds: std::ffi::c_long) {
    // SAFETY: it sets a number that is read atomically.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, milliseconds) }
}

/// It is kept for the next tensor of its size. Without this a sixth of a step of the tokenizer's training, and of the export of a HuBERT, is
/// the system's clearing of pages that it took back a moment before.
pub fn keep() {
    set_purge_delay(600_000); // a negative one keeps it for ever: `release` would do nothing
}

/// What is kept goes back to the system.
pub fn release() {
    // SAFETY: it takes no argument but whether to hurry.
    unsafe { libmimalloc_sys::mi_collect(true) }
}

/// It goes back to the system at once: for tensors that come one after the other, each of which would be beside those before it.
pub fn give_back() {
    set_purge_delay(0);
}
