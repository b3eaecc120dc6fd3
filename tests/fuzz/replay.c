/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs a fuzz target on the files that are named, one after the other, without libFuzzer:
 * scripts/test does this with the corpora. The last name that is printed is the input that failed.
 */
#include "fuzz.h"

#include <fcntl.h>
#include <sys/stat.h>

static uint8_t *read_file(const char *path, size_t *ret_size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat st;
	uint8_t *data;

	CHECK(fd >= 0);
	CHECK(!fstat(fd, &st));
	*ret_size = (size_t)st.st_size;
	data = malloc(*ret_size ? *ret_size
				: 1); /* as long as the input: ASan sees a read beyond it */
	CHECK(data);
	CHECK_EQUAL(read(fd, data, *ret_size), *ret_size);
	close(fd);
	return data;
}

int main(int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		size_t size;
		uint8_t *data = read_file(argv[i], &size);

		puts(argv[i]);
		fflush(stdout);
		LLVMFuzzerTestOneInput(data, size);
		free(data);
	}
	return 0;
}
