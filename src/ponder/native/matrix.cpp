extern "C" int matrix_is_supported() {
#if defined(__AVX512VNNI__) && defined(__AVX512BF16__) && defined(__AVX512VBMI__)
    return 1;
#else
    return 0;
#endif
}
