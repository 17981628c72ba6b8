class Stream:
    handle = 7

    def synchronize(self):
        pass
