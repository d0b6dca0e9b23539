//! One suite, run on each engine.

/// Makes tests of functions that take an engine: `on_tract::name` always, `on_ort::name` with the feature `ort`.
///
/// The latter need a library that is no part of this repository, so they are `ignored`, and counted as such, until
/// `tests/run.sh` has one: it names it in `SA_ORT_LIBRARY` and runs them with `--ignored`.
macro_rules! on_each_engine {
    ($($test:ident),* $(,)?) => {
        mod on_tract {
            $(
                #[test]
                fn $test() {
                    super::$test(&sa_device::engine::Tract);
                }
            )*
        }

        #[cfg(feature = "ort")]
        mod on_ort {
            $(
                #[test]
                #[ignore = "needs ONNX Runtime in SA_ORT_LIBRARY"]
                fn $test() {
                    super::$test(&crate::each::onnx_runtime());
                }
            )*
        }
    };
}

/// ONNX Runtime, from the library that the environment names.
#[cfg(feature = "ort")]
pub fn onnx_runtime() -> sa_device::engine::Ort {
    let library = std::env::var_os("SA_ORT_LIBRARY").expect("SA_ORT_LIBRARY names libonnxruntime.so");
    sa_device::engine::Ort::open(Some(library.as_ref()), sa_device::engine::Device::Auto).expect("it can be used")
}
